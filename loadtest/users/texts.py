"""Words for prompts. Made up by chance, so that two prompts are alike only where they are meant to be."""

from __future__ import annotations

import random

_TEXT = """\
the of a and to in is that it was for on are as with they at be this from have or by one had not but what all were
when we there can an your which their said if do will each about how up out them then she many some so these would
other into has more her two like him see time could no make than first been its who now people my made over did down
only way find use may water long little very after words called just where most know get through back much before go
good new write our used me man too any day same right look think also around another came come work three word must
because does part even place well such here take why things help put years different away again off went old number
great tell men say small every found still between name should home big give air line set own under read last never
us left end along while might next sound below saw something thought both few those always looked show large often
together asked house world"""
WORDS = _TEXT.split()

SYSTEM = (
    "You are a patient assistant of a public library. You answer in plain words and in a few sentences, you name what "
    "you are not sure of, and you never invent a book, an author or a date. Where a question has several meanings, you "
    "say which one you answer. Where you cannot help, you say who could."
)
"""What all conversations begin with, so that their caches do too."""
TOPICS = (
    "the sea",
    "old bridges",
    "bees",
    "the moon",
    "bread",
    "maps",
    "violins",
    "rain",
    "trains",
    "glass",
    "salt",
    "wool",
)


def sentence(draw: random.Random, words: int) -> str:
    """So many words at random."""
    return " ".join(draw.choices(WORDS, k=words)).capitalize() + "."


def question(draw: random.Random) -> str:
    """What a user of a chat writes."""
    return f"Tell me something about {draw.choice(TOPICS)}. {sentence(draw, draw.randint(8, 30))}"


def document(draw: random.Random, words: int) -> str:
    """A text of so many words, in sentences of twenty."""
    return " ".join(sentence(draw, min(20, words - place)) for place in range(0, words, 20))
