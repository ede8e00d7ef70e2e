#!/usr/bin/env python
"""Write docs/reference/families.md: walk every model type, in one process a core."""

import argparse
import os
import sys
import warnings
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import torch
from families.table import write_page
from families.tiny import model_types
from families.walk import Family, measure
from transformers.utils import logging


def walk(model_type: str) -> Family:
    """Walk one family, without the words of the libraries."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    return measure(model_type, quick=False)


def main() -> None:
    """Walk all families and write the page; a fault is printed and ends with status 1."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--processes", type=int, default=min(os.cpu_count() or 1, 4))
    processes = parser.parse_args().processes
    families: list[Family] = []
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        for done in as_completed([pool.submit(walk, name) for name in model_types()]):
            families.append(family := done.result())
            for fault in family.faults:
                print(f"{family.model_type}: {fault}", flush=True)
    write_page(families)
    sys.exit(any(family.faults for family in families))


if __name__ == "__main__":
    main()
