"""The page's colours can be read: WCAG's contrast of 4.5 for every text on its ground."""

import re

import pytest

from hubring_coordinator.page import assets

PAIRS = [
    ("ink", "card"),
    ("ink", "ground"),
    ("soft", "card"),
    ("soft", "ground"),
    ("bad", "card"),
    ("bad", "ground"),
    ("accent", "accent-soft"),
    ("accent", "wait-soft"),
    ("good", "good-soft"),
    ("warn", "warn-soft"),
    ("bad", "bad-soft"),
    *(("ink", f"{level}-soft") for level in ("good", "wait", "warn", "bad")),
]
LIGHT, DARK = (
    dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", block))
    for block in re.findall(r":root \{(.*?)\}", assets.text("page.css"), re.DOTALL)
)


def luminance(colour):
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return sum(w * p for w, p in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.mark.parametrize("scheme", [LIGHT, DARK], ids=["light", "dark"])
@pytest.mark.parametrize("pair", PAIRS, ids="/".join)
def test_text_stands_out_from_its_ground(scheme, pair):
    dark, light = sorted(luminance(scheme[name]) for name in pair)
    assert (light + 0.05) / (dark + 0.05) >= 4.5


def test_the_schemes_have_the_same_colours():
    assert set(LIGHT) == set(DARK)
