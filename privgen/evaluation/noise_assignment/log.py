"""The log of finished runs of `evaluate training`."""

from dataclasses import asdict
from typing import Any

from privgen.evaluation.noise_assignment.runs import Checkpoint
from privgen.evaluation.result_log import ResultLog


LOG = "runs.jsonl"
"""Name of the log in the output folder."""


class RunLog(ResultLog[list[Checkpoint]]):
    """The curves of finished runs."""

    field = "curve"

    def encode(self, value: list[Checkpoint]) -> Any:
        return [asdict(checkpoint) for checkpoint in value]

    def decode(self, record: Any) -> list[Checkpoint]:
        return [Checkpoint(**checkpoint) for checkpoint in record]
