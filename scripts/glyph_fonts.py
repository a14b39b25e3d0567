"""Sources of the `glyphs` data set's pictures: the characters, the packages, and the faces in them.

scripts/build_glyphs.py chooses among the pictures that this module renders.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from fontTools.ttLib import TTCollection, TTFont
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Bits = NDArray[np.bool_]
Floats = NDArray[np.float32]

SIZE = 28
OVERSAMPLING = 4
CANVAS = SIZE * OVERSAMPLING
INK_THRESHOLD = 0.4  # least covered share of an inked pixel; with 0.5, thin strokes break up
HAIRLINE = 0.6  # the threshold for strokes thinner than a pixel, as a share of what these cover
MIN_INK = 15  # least pixels of ink
MAX_LONE = 0.12  # largest share of ink pixels that have no neighbour above, below, left or right


def words(text: str) -> list[str]:
    return text.split()


def between(*ranges: tuple[int, int]) -> str:
    return "".join(chr(code) for first, last in ranges for code in range(first, last + 1))


KANJI = (
    "右雨円王音下火花貝学気九休玉金空月犬見五校左三山子四糸字耳七車手十出女小上森人水正生青石赤千川先早草足村大男竹中虫町天"
    "田土日入年白百文木本名目立林六"  # taught in the first year of school, except six that are also katakana
)
HANGUL = (
    "가각간감강개거건것결경계고공과관교국군그금기길나남내노는다단당대더도동되두들등라러로리마만말면명모목무문물미민바반방보본부분"
    "비사산상생서선성세소속수시신실아안양어업에여연영오와왕요용우원월위유은음의이인일자장재전정제조주중지진차천청초최치크타터통"
    "파평포표품피하학한할합해행향현형호화확환활회후"  # frequent syllables, chosen for variety of outline
)

# Scripts that share shapes share a split, so that no class of a test script has a twin in training.
SCRIPTS: dict[str, tuple[str, str]] = {
    "Latin": ("train", between((0x41, 0x5A), (0x61, 0x7A))),
    "Digits": ("train", between((0x30, 0x39))),
    "Greek": ("train", between((0x391, 0x3A1), (0x3A3, 0x3A9), (0x3B1, 0x3C9))),
    "Cyrillic": ("train", between((0x410, 0x44F))),
    "Hiragana": ("train", between((0x3041, 0x3096))),
    "Katakana": ("train", between((0x30A1, 0x30FA))),
    "Kanji": ("train", KANJI),
    "Hangul": ("train", HANGUL),
    "Arabic": ("train", between((0x621, 0x63A), (0x641, 0x64A))),
    "Khmer": ("val", between((0x1780, 0x17A2), (0x17A5, 0x17B3), (0x17E0, 0x17E9))),
    "Thai": ("val", between((0xE01, 0xE2E), (0xE50, 0xE59))),
    "Hebrew": ("test", between((0x5D0, 0x5EA))),
    "Telugu": ("test", between((0xC05, 0xC39), (0xC66, 0xC6F))),
    "Devanagari": ("test", between((0x904, 0x939), (0x966, 0x96F))),
}
# Letters whose lower-case shape differs from the capital. If they are equal in a face, it has only capitals.
TELLING = "".join(
    (
        "abdeghnqrt",
        between((0x3B1, 0x3B7), (0x3BB, 0x3BC), (0x3BE, 0x3BE), (0x3C3, 0x3C3), (0x3C9, 0x3C9)),
        between((0x430, 0x431), (0x435, 0x435), (0x443, 0x443)),
    )
)

DEBIAN = words("""
fonts-anonymous-pro fonts-averia-gwf fonts-b612 fonts-bebas-neue fonts-breip fonts-bwht fonts-cantarell
fonts-cherrybomb fonts-cmu fonts-comfortaa fonts-comic-neue fonts-courier-prime fonts-dancingscript fonts-dosis
fonts-dotgothic16 fonts-ebgaramond fonts-elstob fonts-fantasque-sans fonts-firacode fonts-gfs-artemisia
fonts-gfs-baskerville fonts-gfs-bodoni-classic fonts-gfs-complutum fonts-gfs-didot-classic fonts-gfs-gazis
fonts-gfs-neohellenic fonts-gfs-solomos fonts-gfs-theokritos fonts-hosny-amiri fonts-jetbrains-mono fonts-joscelyn
fonts-junicode fonts-jura fonts-klee fonts-ldco fonts-leckerli-one fonts-lemonada fonts-linuxlibertine fonts-lohit-deva
fonts-lohit-deva-marathi fonts-lohit-deva-nepali fonts-morisawa-bizud-gothic fonts-morisawa-bizud-mincho
fonts-naver-d2coding fonts-noto-core fonts-oldstandard fonts-play fonts-quattrocento fonts-radisnoir fonts-rampart
fonts-reggae fonts-rocknroll fonts-sil-alkalami fonts-sil-andika fonts-sil-annapurna fonts-sil-charis fonts-sil-ezra
fonts-sil-galatia fonts-sil-harmattan fonts-sil-lateef fonts-sil-mondulkiri fonts-sil-mondulkiri-extra
fonts-sil-scheherazade fonts-stick fonts-train fonts-triod-postnaja fonts-vollkorn fonts-yanone-kaffeesatz
fonts-yusei-magic
""")
FONTSOURCE = words("""
advent-pro akaya-telivigala akshar alexandria alice alkatra almarai amiko amita anek-devanagari anek-telugu angkor
anuphan aref-ruqaa arya assistant athiti bad-script bagel-fat-one bai-jamjuree bakbak-one baloo-2 baloo-bhaijaan-2
balsamiq-sans battambang bayon beiruti bellefair biryani black-and-white-picture black-han-sans blaka bokor bona-nova
cairo cambay caudex caveat chakra-petch changa charm charmonman chokokutai chonburi comic-relief cuprum dangrek
darumadrop-one david-libre dekko dela-gothic-one dhurjati didact-gothic diphylleia do-hyeon east-sea-dokdo eczar
el-messiri fahkwang fasthand forum frank-ruhl-libre fredoka freehand fustat gabriela gaegu gamja-flower gidole glegoo
gotu gowun-batang gowun-dodum grandiflora-one great-vibes gugi gulzar gurajada hachi-maru-pop halant handjet hanuman
heebo hi-melody hina-mincho hind hind-guntur ibm-plex-sans-arabic ibm-plex-sans-hebrew ibm-plex-sans-thai
ibm-plex-sans-thai-looped inknut-antiqua itim jaini jaldi jua k2d kadwa kalam kanit kantumruy-pro karma katibeh
kdam-thmor-pro kelly-slab khand khula kirang-haerang kiwi-maru kodchasan koh-santepheap koho konkhmer-sleokchher koulen
krub kufam kurale laila lakki-reddy lalezar ledger mada maitree mali mallanna mandali mansalva marck-script marhey
markazi-text marmelad martel miriam-libre mirza mitr mochiy-pop-one modak monomaniac-one moul moulpali mukta mynerve
nanum-gothic-coding nanum-pen-script neucha new-tegomin niramit nokora nova-mono ntr odor-mean-chey oranienbaum orbit
palanquin palette-mosaic parastoo pattaya peddana playpen-sans-arabic playpen-sans-deva playpen-sans-hebrew
playpen-sans-thai podkova poiret-one ponnala poor-story potta-one pragati-narrow preahvihear press-start-2p pridi
prompt prosto-one rajdhani rakkas ramabhadra ramaraja ravi-prakash readex-pro reem-kufi rhodium-libre rock-3d rozha-one
rubik rubik-bubbles rubik-wet-paint ruslan-display russo-one ruwudu sahitya sansation sarabun sarala sarpanch
secular-one seymour-one shippori-antique single-day sirivennela slackside-one solitreo song-myung sriracha
stalinist-one stylish suez-one sumana sura suranna suwannaphum syne taprom taviraj tektur tenor-sans tillana timmana
tiny5 tiro-devanagari-hindi tiro-telugu trirong tsukimi-rounded unbounded varela-round vazirmatn vibes victor-mono
wdxl-lubrifont-jp-n yantramanav yeon-sung yeseva-one yomogi yuji-boku yuji-mai zen-antique zen-kurenaido
""")
SUBSETS = words("latin greek cyrillic hebrew telugu devanagari thai khmer korean japanese arabic")


@dataclass(frozen=True)
class Face:
    """One face of a font file: its place, its name table, and the characters that it maps."""

    path: Path
    index: int
    names: dict[int, str]
    weight: int
    codes: frozenset[int]

    @property
    def family(self) -> str:
        """The family's name without its weight, which old name tables include."""
        name = self.names.get(16) or self.names.get(1) or self.path.stem
        weights = r"thin|extra ?light|light|regular|book|medium|semi ?bold|bold|extra ?bold|black|heavy"
        return re.sub(rf"\s+({weights})$", "", name.strip(), flags=re.IGNORECASE)

    def preference(self, characters: str) -> tuple[int, int, str]:
        """Sort key of a family's files: first the most characters, then the weight nearest to regular."""
        covered = sum(ord(character) in self.codes for character in characters)
        return -covered, abs(self.weight - 400), f"{self.path}#{self.index}"


def fetch(cache: Path, pins: dict[str, str]) -> None:
    """Unpacks every listed package into `cache/NAME@VERSION`; prints a line for each that is not available.

    Args:
        cache: a folder; packages that it holds are kept.
        pins: versions by package name; other packages come in their newest version.
    """
    cache.mkdir(parents=True, exist_ok=True)
    for name in [*DEBIAN, *(f"@fontsource/{family}" for family in FONTSOURCE)]:
        folder = name.removeprefix("@").replace("/", "-")
        if any(cache.glob(f"{folder}@*")):
            continue
        with tempfile.TemporaryDirectory(dir=cache) as scratch:
            try:
                unpack = unpack_npm if name.startswith("@") else unpack_debian
                tree, number = unpack(name, pins.get(name), Path(scratch))
                tree.rename(cache / f"{folder}@{number}")
            except (subprocess.CalledProcessError, StopIteration):
                print(f"missing: {name}", file=sys.stderr)


def unpack_npm(name: str, pin: str | None, scratch: Path) -> tuple[Path, str]:
    wanted = f"{name}@{pin}" if pin else name
    subprocess.run(["npm", "pack", "--silent", wanted], cwd=scratch, check=True, capture_output=True)
    with tarfile.open(next(scratch.glob("*.tgz"))) as tar:
        kept = re.compile(rf"package/(package\.json|LICENSE|files/.*-({'|'.join(SUBSETS)})-400-normal\.woff2)")
        tar.extractall(scratch, [member for member in tar if kept.fullmatch(member.name)], filter="data")
    tree = scratch / "package"
    return tree, json.loads((tree / "package.json").read_text())["version"]


def unpack_debian(name: str, pin: str | None, scratch: Path) -> tuple[Path, str]:
    wanted = f"{name}={pin}" if pin else name
    subprocess.run(["apt-get", "download", wanted], cwd=scratch, check=True, capture_output=True)
    package = next(scratch.glob("*.deb"))
    subprocess.run(["dpkg-deb", "-x", package, scratch / "tree"], check=True)
    field = ["dpkg-deb", "-f", str(package), "Version"]
    return scratch / "tree", subprocess.run(field, check=True, capture_output=True, text=True).stdout.strip()


def package_of(cache: Path, path: Path) -> tuple[str, str]:
    """Name and version of the package that a file was unpacked from."""
    name, _, number = path.relative_to(cache).parts[0].rpartition("@")
    npm = name.startswith("fontsource-")
    return (f"@fontsource/{name.removeprefix('fontsource-')}" if npm else name), number


def load_faces(cache: Path) -> list[Face]:
    """The upright faces whose name table states the SIL Open Font License."""
    subset = re.compile(rf".*-({'|'.join(SUBSETS)})-400-normal\.woff2")
    listed = {*DEBIAN, *(f"@fontsource/{family}" for family in FONTSOURCE)}
    faces, refused = [], 0
    for path in sorted(cache.rglob("*")):
        if path.suffix.lower() not in {".ttf", ".otf", ".ttc", ".woff2"} or path.is_symlink():
            continue
        if package_of(cache, path)[0] not in listed or (path.suffix == ".woff2" and not subset.fullmatch(path.name)):
            continue
        for index, font in enumerate(opened(path)):
            names = {number: font["name"].getDebugName(number) or "" for number in (0, 1, 5, 8, 9, 13, 14, 16)}
            if not re.search(
                r"open font licen[sc]e|openfontlicense|\bofl\b", f"{names[13]} {names[14]}", re.IGNORECASE
            ):
                refused += 1
            elif "cmap" in font and not font["head"].macStyle & 2 and not re.search("italic|oblique", path.stem, re.I):
                codes = frozenset(code for code, glyph in font.getBestCmap().items() if glyph != ".notdef")
                weight = font["OS/2"].usWeightClass if "OS/2" in font else 400
                faces.append(Face(path, index, {key: text for key, text in names.items() if text}, weight, codes))
    print(f"{len(faces)} upright faces under the OFL; {refused} refused: their name tables do not say so")
    return faces


def opened(path: Path) -> Iterator[TTFont]:
    if path.suffix.lower() == ".ttc":
        yield from TTCollection(path, lazy=True).fonts
    else:
        yield TTFont(path, lazy=True)


def render(font: ImageFont.FreeTypeFont, character: str) -> Bits | None:
    """The character on the oversampled canvas; its longer side takes 80 %. None if it leaves no ink."""
    left, top, right, bottom = font.getbbox(character)
    if right <= left or bottom <= top:
        return None
    picture = Image.new("L", (int(right - left) + 8, int(bottom - top) + 8))
    ImageDraw.Draw(picture).text((4 - left, 4 - top), character, font=font, fill=255)
    box = picture.getbbox()
    if box is None:
        return None
    scale = 0.8 * CANVAS / max(box[2] - box[0], box[3] - box[1])
    width, height = (max(1, round(side * scale)) for side in (box[2] - box[0], box[3] - box[1]))
    canvas = Image.new("L", (CANVAS, CANVAS))
    shrunk = picture.crop(box).resize((width, height), Image.Resampling.BOX if scale < 1 else Image.Resampling.BICUBIC)
    canvas.paste(shrunk, ((CANVAS - width) // 2, (CANVAS - height) // 2))
    bits = np.asarray(canvas) > 127
    return bits if bits.any() else None


def render_face(face: Face, script: str) -> dict[str, Bits]:
    """The face's pictures of a script's characters, without placeholders for missing ones."""
    font = ImageFont.truetype(face.path, 160, index=face.index, layout_engine=ImageFont.Layout.BASIC)
    tofu = render(font, "\U0010ffff")
    drawn = {}
    for character in SCRIPTS[script][1]:
        picture = render(font, character) if ord(character) in face.codes else None
        if picture is not None and not ((tofu is not None and distance(picture, tofu) < 0.02) or shattered(picture)):
            drawn[character] = picture
    if len({picture.tobytes() for picture in drawn.values()}) < 0.6 * len(drawn):
        return {}
    return drawn


def shattered(picture: Bits) -> bool:
    """Whether a picture breaks up at its final size, as hairlines and worn stencils do."""
    ink = np.pad(binarised(shrink(picture[None]))[0].reshape(SIZE, SIZE), 1).astype(bool)
    beside = ink[:-2, 1:-1] | ink[2:, 1:-1] | ink[1:-1, :-2] | ink[1:-1, 2:]
    lone = (ink[1:-1, 1:-1] & ~beside).sum()
    return bool(ink.sum() < MIN_INK or lone > MAX_LONE * ink.sum())


def shrink(pictures: Bits | Floats) -> Floats:
    """Grey pictures [n, 784] of canvases [n, 112, 112]."""
    blocks = pictures.reshape(-1, SIZE, OVERSAMPLING, SIZE, OVERSAMPLING)
    return blocks.mean((2, 4), dtype=np.float32).reshape(-1, SIZE * SIZE)


def binarised(covered: Floats) -> NDArray[np.uint8]:
    """One-bit pictures [n, 784] of grey ones."""
    strokes = np.array([np.quantile(row[row > 0], 0.9) if row.any() else 1 for row in covered], np.float32)
    return (covered >= np.minimum(INK_THRESHOLD, HAIRLINE * strokes)[:, None]).astype(np.uint8)


def distance(first: Bits, second: Bits) -> float:
    """L1 distance as a share of the mean ink."""
    return float(2 * (first ^ second).sum() / max(1, first.sum() + second.sum()))
