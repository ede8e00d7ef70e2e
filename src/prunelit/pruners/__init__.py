"""Pruning methods, one in each file."""

from prunelit.models.architecture import oriented_weight
from prunelit.models.stores import whole
from prunelit.pruners.admm import ADMM
from prunelit.pruners.base import Probe, Pruner
from prunelit.pruners.block_drop import BlockDrop
from prunelit.pruners.budget import Budget
from prunelit.pruners.depth_by_loss import DepthByLoss
from prunelit.pruners.dsnot import DSnoT
from prunelit.pruners.expert_drop import ExpertDrop
from prunelit.pruners.expert_merge import ExpertMerge
from prunelit.pruners.heads import Heads
from prunelit.pruners.hidden import Hidden
from prunelit.pruners.linear_pruner import LinearPruner
from prunelit.pruners.magnitude import Magnitude
from prunelit.pruners.neuron import Neuron
from prunelit.pruners.obs_update import OBSUpdate
from prunelit.pruners.quantize import Quantize
from prunelit.pruners.random import Random
from prunelit.pruners.ria import RIA
from prunelit.pruners.sequence import Sequence
from prunelit.pruners.sparse_fw import SparseFW
from prunelit.pruners.sparsegpt import SparseGPT
from prunelit.pruners.sublayer_drop import SublayerDrop
from prunelit.pruners.wanda import Wanda
from prunelit.pruners.wanda_plus import WandaPlus

__all__ = [
    "ADMM",
    "RIA",
    "BlockDrop",
    "Budget",
    "DSnoT",
    "DepthByLoss",
    "ExpertDrop",
    "ExpertMerge",
    "Heads",
    "Hidden",
    "LinearPruner",
    "Magnitude",
    "Neuron",
    "OBSUpdate",
    "Probe",
    "Pruner",
    "Quantize",
    "Random",
    "Sequence",
    "SparseFW",
    "SparseGPT",
    "SublayerDrop",
    "Wanda",
    "WandaPlus",
    "oriented_weight",
    "whole",
]
