"""What do attackers achieve who know the method?"""
