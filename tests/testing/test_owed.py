"""What is built is tested: no key stands at "not built yet" once the file that owes it exists."""

import re
from pathlib import Path

import pytest

import scratchgen
from scratchgen.testing.equations import catalogue, scan

PACKAGE = Path(scratchgen.__file__).parent
TESTS = Path(__file__).parent.parent

OWED = {
    "maths/bounds.py": "ELBO-1..7 MET-3",
    "maths/forward_process.py": "VDM-1..9 DDPM-1..14 DDPM-17 DVAE-6..10",
    "maths/score.py": "SCORE-1..8",
    "models/autoencoder.py": "NET-1..3",
    "models/vae.py": "VAE-1..10",
    "models/markov_hvae.py": "HVAE-1..3",
    "models/ladder_hvae.py": "HVAE-4..6",
    "models/gan.py": "GAN-1..12 GAN-14",
    "models/ddpm.py": "VDM-10 DDPM-15..16",
    "models/diffusevae.py": "DVAE-1..5 DVAE-11..17 NET-12",
    "layers/attention.py": "NET-7",
    "nets/time.py": "NET-8..9",
    "nets/unet.py": "NET-5..6 NET-10..11",
    "metrics/distances.py": "MET-1..2 NET-4",
    "compression/rate_distortion.py": "RD-2..8",
    "compression/container.py": "RD-1",
    "compression/progressive.py": "RD-9..15 MET-4",
    "compression/two_stage.py": "RD-16..18",
}


def keys(ranges: str) -> list[str]:
    """ "VAE-1..3 MET-3" -> VAE-1, VAE-2, VAE-3, MET-3."""
    found = re.findall(r"([A-Z]+)-(\d+)(?:\.\.(\d+))?", ranges)
    return [
        f"{f}-{i}" for f, first, last in found for i in range(int(first), int(last or first) + 1)
    ]


@pytest.fixture(scope="module")
def held() -> set[str]:
    """Keys that a test is marked with."""
    return {key for key, places in scan(PACKAGE, TESTS).items() if places["tests"]}


def of_kinds(*kinds: str) -> list[str]:
    return [key for key, e in catalogue().items() if e.testable and e.kind in kinds]


def test_every_testable_key_is_owed_by_one_file():
    assert sorted(k for ranges in OWED.values() for k in keys(ranges)) == sorted(
        of_kinds("equation", "claim", "table")
    )


@pytest.mark.parametrize("path", [path for path in OWED if (PACKAGE / path).is_file()])
def test_what_a_file_owes_is_tested(path, held):
    assert [key for key in keys(OWED[path]) if key not in held] == []


def test_every_printed_error_is_tested(held):
    assert [key for key in of_kinds("erratum") if key not in held] == []


def test_every_trap_is_tested_once_what_it_concerns_is(held):
    ripe = [key for key in of_kinds("trap") if held >= set(catalogue()[key].concerns)]
    assert [key for key in ripe if key not in held] == []
