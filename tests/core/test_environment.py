import torch

from prunelit import PruneTrainer
from prunelit.core.environment import describe_environment


def test_precision_and_versions_are_those_of_the_run() -> None:
    found = describe_environment(PruneTrainer(precision="bf16-true", logger=False))
    assert (found["device"], found["precision"]) == ("cpu", "bf16-true")
    assert found["versions"]["torch"] == torch.__version__
