"""Linear programs solved by HiGHS, without its banner."""

from __future__ import annotations

import os
import sys

import highspy


def new_model() -> highspy.Highs:
    """A program without anything in it. (The first one of a process greets on standard output, whatever one says.)"""
    sys.stdout.flush()
    kept = os.dup(1)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        model = highspy.Highs()
        model.silent()
        return model
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)
