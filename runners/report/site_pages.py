"""The pages of a site of claims as HTML: the leaderboard, and one for each claim. All text of claims is escaped."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from html import escape
from typing import Any

from foundations.results import rounded
from runners.report.page import whole_page
from runners.report.site_entries import Entry, Group, short
from runners.report.site_pictures import Shown
from testing.claims.claim import ITSELF
from testing.claims.judging import described

STYLE = """
th button { white-space: normal; }
td { overflow-wrap: anywhere; min-width: 4rem; } td a { white-space: normal; }
td:first-child, td:has(a) { min-width: 9rem; } td:first-child:has(+ td a) { min-width: 0; } /* a rank before a model */
td:nth-last-child(2), td:nth-last-child(3) { min-width: 7rem; }
dl { display: grid; grid-template-columns: minmax(7rem, max-content) 1fr; gap: .3rem 1.5rem; font-size: .875rem; }
dt { color: var(--quiet); } dd { margin: 0; }
pre { overflow-x: auto; background: var(--card); border: 1px solid var(--line); border-radius: 6px; padding: .6rem; }
pre code { white-space: pre-wrap; overflow-wrap: anywhere; }
.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 20rem), 1fr)); gap: 1rem 1.5rem; }
.pictures figure { margin: 0; } .three { display: grid; grid-template-columns: repeat(3, 1fr); gap: .3rem; }
.pictures .zoom img { width: 100%; padding: 0; border-radius: 3px; image-rendering: pixelated; }
dialog { background: #222; } dialog img { image-rendering: pixelated; width: min(96vw, 96vh); min-width: 0; }
@media (max-width: 640px) { td:nth-child(n) { min-width: 0; } dl { display: block; } dd { margin-bottom: .5rem; } }
"""
TITLE = "Claims about robust models"
SENTENCES = (
    "Claimed: accuracy on these images inside the set is at most the figure, because for every image that counts as "
    "broken the file holds a picture in the set, which anyone can show to the model.",
    "Not claimed: that no attack does better, or anything about other images and sets; a high figure may come from a "
    "weak attack, and any lab can lower it by another claim (merge).",
    "Verified here: whoever made this page has the same images and weights, and found every picture to be in the set "
    "and answered wrongly (doubtful: another device may answer otherwise); the name of the model is that under which "
    "the weights were found. What is not verified, and what is called told, is the word of its authors.",
)
HOW = (
    "Test the model, bundle the test by one command, and send the one file that it writes. FLAGS are those of the "
    "entries that yours is to be compared with, but with your own model: the page of each entry has its commands."
)
ENTER = """python nonisotropic.py test FLAGS --save_adversarials
python nonisotropic.py bundle FLAGS --author=NAME --output=claim.zip"""
SET_COLUMNS = ("set", "accuracy at most", "broken", "doubtful", "found by", "certified, told")

Cell = str | tuple[str, str]  # text, or text and the address that it leads to


def index_html(groups: Sequence[Group]) -> str:
    """The leaderboard: a table for each group, and how to enter."""
    sentences = "".join(f"<li>{escape(sentence)}</li>" for sentence in SENTENCES)
    tables = "\n".join(_leaderboard(group, number) for number, group in enumerate(groups, 1))
    body = (
        f'<ul class="answer">{sentences}</ul>\n{tables}\n'
        f'<section><h2 id="enter">How to enter</h2>\n<p>{escape(HOW)}</p>\n<pre><code>{ENTER}</code></pre>\n'
        f"<p>Anyone checks a file by <code>python nonisotropic.py verify claim.zip</code>. These figures as data: "
        f'<a href="leaderboard.json">leaderboard.json</a>.</p></section>'
    )
    return whole_page(TITLE, body, "picture, large", STYLE)


def _leaderboard(group: Group, number: int) -> str:
    told = _told_columns(group)
    header = ["rank", "model", "clean, at most", *(f"at most in {name}" for name in group.sets), *told]
    columns = list(told.values())
    rows = [_leaderboard_row(entry, rank, columns) for rank, entry in zip(group.ranks, group.entries, strict=True)]
    anchors = group.entries[0].claim.facts["anchors"]
    among = f", {anchors['count']:,} anchors of SHA-256 {anchors['sha256'][:12]}" if anchors else ""
    note = (
        f"The {group.data['split']} split, images of SHA-256 {group.data['sha256'][:12]}{among}. "
        "Best model first, by the mean over the sets of its lowest claim (of those verified here, where some are); "
        "further claims about the same weights in the same network follow it. What is told is the word of the authors, "
        "which no file proves; passes are forward and backward ones of the model for an image, in nonisotropic sets. "
        "Click a heading to sort."
    )
    table = _table([*header, "authors", "verified here", "doubtful"], rows)
    title = f'<h2 id="table-{number}">{escape(short(group.title))}</h2>'
    return f'<section>{title}\n<p class="quiet">{escape(note)}</p>\n{table}</section>'


Column = Callable[[Entry], str]


def _told_columns(group: Group) -> dict[str, Column]:
    """Columns of what runs tell, by heading: certified shares and corruptions only where an entry has them."""
    columns: dict[str, Column] = {}
    for place, name in enumerate(group.sets):
        if any(entry.certified[place] is not None for entry in group.entries):
            columns[f"certified, told, in {name}"] = partial(_certified, place)
    for name in sorted({name for entry in group.entries for name in entry.corruptions}):
        columns[f"corruptions, told: {short(name)}"] = partial(_corrupted, name)
    return columns | {"passes, told": _passes, "seconds, told": lambda entry: f"{entry.seconds:.0f}"}


def _certified(place: int, entry: Entry) -> str:
    """A share above the accuracy cannot be true, and is said to be none."""
    share = entry.certified[place]
    if share is None:
        return "-"
    images = entry.claim.facts["data"]["examples"]
    standing = images - entry.claim.facts["claims"][place]["broken"]
    return rounded(share) if round(share * images) <= standing else f"{rounded(share)}, refuted by this file"


def _corrupted(name: str, entry: Entry) -> str:
    return rounded(entry.corruptions[name]) if name in entry.corruptions else "-"


def _passes(entry: Entry) -> str:
    return "-" if entry.passes is None else f"{entry.passes:.0f}"


def _leaderboard_row(entry: Entry, rank: int | None, told: Sequence[Column]) -> list[Cell]:
    row = entry.row()
    figures = [rounded(value) for value in (row["clean_at_most"], *row["accuracy_at_most"])]
    figures += [column(entry) for column in told]
    word = {"verified_here": "yes", "refuted_here": "refuted"}
    record = next((f"{word[name]}: {row['record']}" for name in word if row[name]), "no")
    doubtful = str(sum(row["doubtful"])) if row["verified_here"] else "-"
    authors = short(", ".join(row["authors"]))
    return [
        str(rank or "-"),
        (f"{entry.called} ({row['weights_sha256'][:8]})", row["page"]),
        *figures,
        authors,
        record,
        doubtful,
    ]


def entry_html(entry: Entry, shown: Sequence[Shown], note: str) -> str:
    """The page of a claim; `note` says why there are no pictures."""
    facts = entry.claim.facts
    pictures = "".join(_picture(one) for one in shown)
    commands = "\n".join(f"# {run['author']}\n{run['command']}" for run in facts["runs"])
    body = (
        f'<p><a href="index.html">All claims</a></p>\n{_facts(entry)}\n'
        f"<h2>Sets</h2>\n{_table(SET_COLUMNS, set_rows(entry))}\n"
        f"{''.join(_curve(title, rows) for title, rows in curves(entry).items())}"
        f'<h2>Adversarial examples</h2>\n<p class="quiet">{escape(note or PICTURES)}</p>\n'
        f'<div class="pictures">{pictures}</div>\n'
        f"<h2>Commands</h2>\n<pre><code>{escape(commands)}</code></pre>\n"
        f'<p><a href="{entry.stem}.md">Model card</a> with these figures for the Hugging Face hub.</p>'
    )
    return whole_page(entry.called, body, "picture, large", STYLE)


PICTURES = "The image, the image changed, and the change alone, made larger around grey. Click to enlarge."


def fact_rows(entry: Entry) -> list[tuple[str, str]]:
    """The subject of a claim, and who stands for it."""
    facts, record = entry.claim.facts, entry.record
    data, anchors = facts["data"], facts["anchors"]
    verified = "no: it is the word of its authors alone"
    if record:
        verified = f"refuted: {'; '.join(record.refuted)}" if record.refuted else f"yes: {record.place}"
        verified += f" ({record.made_by})"
    return [
        ("model, told" if entry.is_name_told else "model, found here as", entry.name),
        *((("model, told", entry.told_name),) if entry.name != entry.told_name else ()),
        ("network, told" if entry.is_name_told else "network", entry.model[1]),
        ("weights", f"SHA-256 {facts['model']['sha256']}"),
        ("how to get them, told", facts["model"]["obtain"]),
        ("authors", ", ".join(facts["authors"])),
        ("images", f"{data['examples']:,} of {data['description'].get('dataset_name')}, {data['split']} split"),
        ("SHA-256 of the images", data["sha256"]),
        ("anchors", f"{anchors['count']:,}, SHA-256 {anchors['sha256']}" if anchors else "none"),
        *((("chosen by the file", "; ".join(entry.chosen)),) if entry.chosen else ()),
        ("clean accuracy", f"at most {rounded(entry.clean)}"),
        *((f"corruptions, told: {name}", rounded(accuracy)) for name, accuracy in entry.corruptions.items()),
        ("cost, told", f"{_passes(entry)} passes for an image in nonisotropic sets, {entry.seconds:.0f} s"),
        ("claim", f"SHA-256 {entry.claim.digest}"),
        ("verified here", verified),
    ]


def _facts(entry: Entry) -> str:
    rows = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>\n" for name, value in fact_rows(entry))
    return f"<dl>{rows}</dl>"


def set_rows(entry: Entry) -> list[list[Cell]]:
    """For each claimed set the columns of SET_COLUMNS."""
    facts, found_by = entry.claim.facts, entry.claim.arrays["found_by"]
    wrong = int((entry.claim.arrays["witness"] == ITSELF).any(0).sum())
    rows: list[list[Cell]] = []
    for place, each in enumerate(facts["claims"]):
        counts = zip(facts["authors"], found_by[place].sum(0).tolist(), strict=True)
        doubtful = str(entry.record.doubtful[place]) if entry.record and entry.is_verified else "-"
        broken = f"{each['broken']} ({wrong} of them as they are)"
        found = ", ".join(f"{short(author)} {count}" for author, count in counts)
        certified = _certified(place, entry)
        rows.append([described(each), rounded(each["accuracy"]), broken, doubtful, found, certified])
    return rows


def curves(entry: Entry) -> dict[str, list[list[Cell]]]:
    """By what is held fixed, accuracy over thresholds; only where there are two or more."""
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for each in entry.claim.facts["claims"]:
        word, _, radius = described(each).partition(" <= ")
        found[f"{word}{radius.partition(',')[2] and ',' + radius.partition(',')[2]}"].append(each)
    return {
        f"Curve: {title}": [
            [f"{each['threshold']:.4g}", rounded(each["accuracy"])]
            for each in sorted(several, key=lambda each: each["threshold"])
        ]
        for title, several in found.items()
        if len(several) > 1
    }


def _curve(title: str, rows: list[list[Cell]]) -> str:
    return f"<h3>{escape(title)}</h3>\n{_table(['threshold', 'accuracy at most'], rows)}\n"


def _picture(shown: Shown) -> str:
    names = ("the image", "changed", f"change, times {shown.times:.3g}")
    images = "".join(
        f'<button type="button" class="zoom" title="enlarge"><img alt="{escape(f"image {shown.row}: {name}")}" '
        f'src="data:image/png;base64,{data}"></button>'
        for name, data in zip(names, shown.pictures, strict=True)
    )
    others = f" and {len(shown.sets) - 1} more" if len(shown.sets) > 1 else ""
    caption = f"image {shown.row}, class {shown.label}: in {shown.sets[0]}{others}; {names[2]}"
    return f'<figure><div class="three">{images}</div><figcaption>{escape(caption)}</figcaption></figure>\n'


def _table(header: Sequence[str], rows: Sequence[Sequence[Cell]]) -> str:
    head = "".join(f'<th scope="col"><button type="button">{escape(name)}</button></th>' for name in header)
    body = "\n".join(
        "<tr>"
        + "".join(f'<td data-label="{escape(n)}">{_cell(c)}</td>' for n, c in zip(header, row, strict=True))
        + "</tr>"
        for row in rows
    )
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _cell(cell: Cell) -> str:
    if isinstance(cell, str):
        return f"<span>{escape(cell)}</span>"
    return f'<a href="{escape(cell[1])}">{escape(cell[0])}</a>'
