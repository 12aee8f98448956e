"""Mutated images of many encodings: none is read wrong without a word."""

from __future__ import annotations

from collections import Counter

import pytest
from mutated_images import (
    EQUAL,
    FOREIGN,
    REFUSED,
    SILENT,
    UNPROTECTED,
    WARNED,
    Mutant,
    corpus,
    judge,
    mutants,
)

ORIGINALS = corpus()

TOLD = ("TIFF pages", "WEBP frames", "JPEG CMYK")


@pytest.mark.parametrize("original", ORIGINALS, ids=lambda original: original.name)
def test_an_image_is_read_as_it_was_drawn(original):
    outcome, said = judge(Mutant(original, "none", original.item, original.pixels))
    assert (outcome, said if outcome != WARNED else "") == (
        (WARNED, "") if original.name in TOLD else (EQUAL, "")
    )


def test_no_mutant_is_read_wrong_without_a_word():
    """`fuzz/mutated_images.py` does so for 10,000."""
    outcomes: Counter[str] = Counter()
    for mutant in mutants(10 * len(ORIGINALS), seed=1):
        outcome, said = judge(mutant)
        assert outcome not in (SILENT, FOREIGN), (mutant.original.name, mutant.mutation, said)
        outcomes[outcome] += 1
    assert set(outcomes) == {REFUSED, EQUAL, WARNED, UNPROTECTED}
    # Only formats without checksums can change without a trace.
    assert outcomes[UNPROTECTED] < 0.25 * sum(outcomes.values())
