"""The alphabets of Omniglot: how many characters each has, and in which split it is.

Lake's two sets: Brenden Lake, Ruslan Salakhutdinov, Joshua Tenenbaum, Science 2015. Vinyals' split: Oriol Vinyals,
Charles Blundell, Timothy Lillicrap, Koray Kavukcuoglu, Daan Wierstra: Matching Networks for One Shot Learning, NeurIPS
2016, arXiv:1606.04080. Jake Snell, Kevin Swersky and Richard Zemel published it with Prototypical Networks for Few-shot
Learning, NeurIPS 2017, arXiv:1703.05175. It consists of whole alphabets, except four characters of Gurmukhi.
"""

from __future__ import annotations

from typing import NamedTuple

# Alphabet: number of characters, Vinyals' split. Lake's "images_background", 964 characters:
BACKGROUND = {
    "Alphabet_of_the_Magi": (20, "train"),
    "Anglo-Saxon_Futhorc": (29, "train"),
    "Arcadian": (26, "train"),
    "Armenian": (41, "val"),
    "Asomtavruli_(Georgian)": (40, "train"),
    "Balinese": (24, "train"),
    "Bengali": (46, "val"),
    "Blackfoot_(Canadian_Aboriginal_Syllabics)": (14, "train"),
    "Braille": (26, "train"),
    "Burmese_(Myanmar)": (34, "train"),
    "Cyrillic": (33, "train"),
    "Early_Aramaic": (22, "val"),
    "Futurama": (26, "train"),
    "Grantha": (43, "train"),
    "Greek": (24, "train"),
    "Gujarati": (48, "train"),
    "Hebrew": (22, "val"),
    "Inuktitut_(Canadian_Aboriginal_Syllabics)": (16, "train"),
    "Japanese_(hiragana)": (52, "train"),
    "Japanese_(katakana)": (47, "train"),
    "Korean": (40, "train"),
    "Latin": (26, "train"),
    "Malay_(Jawi_-_Arabic)": (40, "train"),
    "Mkhedruli_(Georgian)": (41, "val"),
    "N_Ko": (33, "train"),
    "Ojibwe_(Canadian_Aboriginal_Syllabics)": (14, "train"),
    "Sanskrit": (42, "train"),
    "Syriac_(Estrangelo)": (23, "train"),
    "Tagalog": (17, "train"),
    "Tifinagh": (55, "train"),
}
# Lake's "images_evaluation", 659 characters:
EVALUATION = {
    "Angelic": (20, "train"),
    "Atemayar_Qelisayer": (26, "train"),
    "Atlantean": (26, "train"),
    "Aurek-Besh": (26, "train"),
    "Avesta": (26, "train"),
    "Ge_ez": (26, "train"),
    "Glagolitic": (45, "train"),
    "Gurmukhi": (45, "train"),
    "Kannada": (41, "test"),
    "Keble": (26, "test"),
    "Malayalam": (47, "test"),
    "Manipuri": (40, "test"),
    "Mongolian": (30, "test"),
    "Old_Church_Slavonic_(Cyrillic)": (45, "test"),
    "Oriya": (46, "test"),
    "Sylheti": (28, "test"),
    "Syriac_(Serto)": (23, "test"),
    "Tengwar": (25, "test"),
    "Tibetan": (42, "test"),
    "ULOG": (26, "test"),
}
# The alphabet Gurmukhi is for training, except these characters, which Vinyals uses for testing.
OTHERWISE = {f"Gurmukhi/character{number}": "test" for number in (42, 43, 44, 45)}


class Character(NamedTuple):
    """A class of Omniglot.

    Attributes:
        name: "Greek/character07".
        subset: of Lake's two: "images_background" or "images_evaluation".
        split: of Vinyals' three: "train", "val" or "test".
    """

    name: str
    subset: str
    split: str


def characters() -> list[Character]:
    """All 1,623, in the order of their class numbers: Lake's background before his evaluation, each by name."""
    return [
        Character(name, subset, OTHERWISE.get(name, split))
        for subset, alphabets in (("images_background", BACKGROUND), ("images_evaluation", EVALUATION))
        for alphabet, (count, split) in alphabets.items()
        for name in (f"{alphabet}/character{number:02d}" for number in range(1, count + 1))
    ]
