"""Which methods make models hallucinate less?"""
