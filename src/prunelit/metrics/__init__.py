"""Measure how far dense and pruned are apart.

Two models are compared in three spaces: embeddings h, logits z and next-token probabilities p. The
classes are torchmetrics; they take dense and pruned tensors and give a mean over tokens. The
functions give one value per token, question, rollout or ranked list. Files in `spaces/` hold one
space each (KL is in `probability.py`); `retained.py` holds the bootstrap.
"""

from prunelit.metrics.calibration_error import (
    brier_scores,
    calibration_errors,
    calibration_gaps,
    calibration_noise,
)
from prunelit.metrics.correlation import jackknife_error, spearman
from prunelit.metrics.first_divergence import find_first_divergence
from prunelit.metrics.flips import answer_flips, mcnemar
from prunelit.metrics.pass_at_k import estimate_pass_at_k
from prunelit.metrics.quantization_ruler import place_on_ruler
from prunelit.metrics.repetition import distinct, repetition_rate
from prunelit.metrics.retained import estimate_retained
from prunelit.metrics.retrieval import chance_ndcg, list_agreement, list_metrics, rank_documents
from prunelit.metrics.sketch import Sketch
from prunelit.metrics.spaces.buffers import Buffers
from prunelit.metrics.spaces.deviation import deviations
from prunelit.metrics.spaces.embedding import (
    EmbeddingCosine,
    embedding_cosine,
    embedding_orthogonal,
    embedding_parallel,
)
from prunelit.metrics.spaces.estimates import (
    cosine_estimate,
    kl_estimate,
    probability_cosine_estimate,
)
from prunelit.metrics.spaces.logit import (
    LogitCosine,
    LogitMSE,
    logit_cosine,
    logit_mse,
    logit_orthogonal,
    logit_parallel,
    logit_std,
    logit_std_p,
    logit_std_top,
)
from prunelit.metrics.spaces.logit_gram import LogitGram
from prunelit.metrics.spaces.logit_pair import LogitPair
from prunelit.metrics.spaces.probability import (
    ProbabilityCosine,
    ProbabilityKL,
    Top1Agreement,
    js,
    kl,
    probability_cosine,
    top1_agreement,
    topk_overlap,
)
from prunelit.metrics.spaces.subspace import subspace_deviations
from prunelit.metrics.spaces.token_mean import TokenMean
from prunelit.metrics.spaces.vector_pair import VectorPair
from prunelit.metrics.survival import forecast_survival, kaplan_meier, keep_probability
from prunelit.metrics.validity import measure_validity

__all__ = [
    "Buffers",
    "EmbeddingCosine",
    "LogitCosine",
    "LogitGram",
    "LogitMSE",
    "LogitPair",
    "ProbabilityCosine",
    "ProbabilityKL",
    "Sketch",
    "TokenMean",
    "Top1Agreement",
    "VectorPair",
    "answer_flips",
    "brier_scores",
    "calibration_errors",
    "calibration_gaps",
    "calibration_noise",
    "chance_ndcg",
    "cosine_estimate",
    "deviations",
    "distinct",
    "embedding_cosine",
    "embedding_orthogonal",
    "embedding_parallel",
    "estimate_pass_at_k",
    "estimate_retained",
    "find_first_divergence",
    "forecast_survival",
    "jackknife_error",
    "js",
    "kaplan_meier",
    "keep_probability",
    "kl",
    "kl_estimate",
    "list_agreement",
    "list_metrics",
    "logit_cosine",
    "logit_mse",
    "logit_orthogonal",
    "logit_parallel",
    "logit_std",
    "logit_std_p",
    "logit_std_top",
    "mcnemar",
    "measure_validity",
    "place_on_ruler",
    "probability_cosine",
    "probability_cosine_estimate",
    "rank_documents",
    "repetition_rate",
    "spearman",
    "subspace_deviations",
    "top1_agreement",
    "topk_overlap",
]
