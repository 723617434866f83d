"""Pictures by the hundred: `privgen.generate`, under the name that evaluations know it by."""

from privgen.generate import BATCH_SIZE, GUIDANCE, STEPS, generate, generate_batches


__all__ = ["BATCH_SIZE", "GUIDANCE", "STEPS", "generate", "generate_batches"]
