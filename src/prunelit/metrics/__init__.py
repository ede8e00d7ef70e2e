"""How far dense and pruned are apart, in embedding, logit and probability space."""

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
from prunelit.metrics.spaces.vector_pair import VectorPair

__all__ = [
    "EmbeddingCosine",
    "LogitCosine",
    "LogitMSE",
    "LogitPair",
    "ProbabilityCosine",
    "ProbabilityKL",
    "Top1Agreement",
    "VectorPair",
    "cosine_estimate",
    "deviations",
    "embedding_cosine",
    "embedding_orthogonal",
    "embedding_parallel",
    "js",
    "kl",
    "kl_estimate",
    "logit_cosine",
    "logit_mse",
    "logit_orthogonal",
    "logit_parallel",
    "logit_std",
    "logit_std_p",
    "logit_std_top",
    "probability_cosine",
    "probability_cosine_estimate",
    "top1_agreement",
    "topk_overlap",
]
