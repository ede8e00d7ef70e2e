"""The tasks that measure a pruned model, one a file."""

from prunelit.models.model_pair import ModelPair
from prunelit.report.task_report import TaskReport
from prunelit.tasks.base import Task
from prunelit.tasks.classification import Classification
from prunelit.tasks.collection_retrieval import CollectionRetrieval
from prunelit.tasks.deviation import Deviation
from prunelit.tasks.distribution import Distribution
from prunelit.tasks.generation import Generation
from prunelit.tasks.item_table import ItemTable
from prunelit.tasks.multiple_choice import MultipleChoice
from prunelit.tasks.perplexity import Perplexity
from prunelit.tasks.prompting.few_shot import FewShot
from prunelit.tasks.retrieval import Retrieval
from prunelit.tasks.routing import Routing
from prunelit.tasks.semantic_similarity import SemanticSimilarity
from prunelit.tasks.subspace import Subspace
from prunelit.tasks.trajectory import Trajectory
from prunelit.tasks.transitions import Transitions

__all__ = [
    "Classification",
    "CollectionRetrieval",
    "Deviation",
    "Distribution",
    "FewShot",
    "Generation",
    "ItemTable",
    "ModelPair",
    "MultipleChoice",
    "Perplexity",
    "Retrieval",
    "Routing",
    "SemanticSimilarity",
    "Subspace",
    "Task",
    "TaskReport",
    "Trajectory",
    "Transitions",
]
