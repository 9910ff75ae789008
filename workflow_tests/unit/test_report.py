"""The report, its picture and its summary, from a small run made with the package's own stages."""

import io
import json
import re
import shutil
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest
from PIL import Image
from results_tree import FALSE, STRANGE, TRAIN, Tree

from panorgan.config.labels import load_labels
from panorgan.io.formats import DASH, MISSING
from panorgan.report import page as report
from panorgan.report.pictures import Gallery


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Tree:
    return Tree(tmp_path_factory.mktemp("tree"), variants=("stage1", "stage2"), phantom=True)


@pytest.fixture(scope="module")
def made(tree: Tree) -> tuple[str, bytes, str]:
    return tree.report()


class Page(HTMLParser):
    """What a test asks of a page: its text, pictures and links, and whether tags are closed."""

    VOID = ("meta", "img", "br", "link", "input")

    def __init__(self, html: str):
        super().__init__()
        self.open, self.pictures, self.links, self.ids, self.headings = [], [], [], [], []
        self.text = ""
        self.feed(html)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "img":
            self.pictures.append(attributes)
        if tag == "a":
            self.links.append(attributes["href"])
        if re.fullmatch(r"h\d", tag):
            self.headings.append(int(tag[1]))
        if "id" in attributes:
            self.ids.append(attributes["id"])

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data

    @property
    def words(self) -> str:
        """The text with single spaces."""
        return " ".join(self.text.split())


def row_of(html: str, start: str) -> list[str]:
    """Cells of the first table row whose first cell is `start`."""
    for row in re.findall(r"<tr.*?</tr>", html, re.DOTALL):
        cells = [Page(cell).words for cell in re.findall(r"<t[hd].*?</t[hd]>", row, re.DOTALL)]
        if cells[0] == start:
            return cells
    raise AssertionError(f"no row {start}")


def test_page_is_self_contained_and_well_formed(made):
    html, _, _ = made
    page = Page(html)
    assert len(html) < 15e6
    assert '<html lang="en">' in html
    assert all(picture["src"].startswith("data:image/") for picture in page.pictures)
    assert all(picture["alt"] for picture in page.pictures)
    assert all(link.startswith("#") and link[1:] in page.ids for link in page.links)
    assert len(page.ids) == len({*page.ids})
    assert "http" not in re.sub(r"data:image[^\"]*|http-equiv", "", html)


def test_headings_are_in_order(made):
    headings = Page(made[0]).headings
    assert headings[0] == 1
    assert headings.count(1) == 1
    assert all(later <= before + 1 for before, later in pairwise(headings))


def test_every_section_has_its_pictures(made):
    alts = [picture["alt"] for picture in Page(made[0]).pictures]

    def count(pattern: str) -> int:
        return sum(bool(re.search(pattern, alt)) for alt in alts)

    assert count("of every validation case by class") == 2
    assert count("against its DSC") == 1
    assert count("Histograms by split") == 1
    assert count("Learning curves of") == 3
    assert count("^(Worst|Median|Best) case val_[123]: CT, reference") == 3
    # The worst organ of the three cases, and the worst case of each class that is not among them.
    assert 14 <= count("of case val_. in an axial, a coronal and a sagittal plane") <= 17
    assert count("outlined on CT") == 4  # an ignored, a removed, a kept tumour; a kept organ
    assert count("the source of each voxel in three planes") == 1
    assert count("an axial slice of CT, fused label") == 2


def test_bad_numbers_lead_to_their_pictures(made):
    html = made[0]
    page = Page(html)
    for case in ("val_1", "val_2", "val_3"):
        assert f"#case:{case}" in page.links
    classes = re.findall(r'href="#case:val_\d:(\w+)"', html)
    assert {*classes} >= {label.name for label in load_labels().labels}


def test_user_text_is_escaped(made):
    html, _, _ = made
    assert "<script>alert" not in html
    assert html.count("<script") == 1
    assert STRANGE in Page(html).text


def test_scores_are_those_of_the_summaries(tree, made):
    html, _, text = made
    summary = json.loads(
        Path(tree.root, "round-1/scores/stage2/seed-0/validation/summary.json").read_text()
    )
    liver, positive = summary["classes"]["liver"], summary["tumour"]["positive"]
    dsc, nsd = (f"{liver[key] * 100:.2f}" for key in ("dsc", "nsd"))
    row = row_of(html, "Liver")
    assert row[1] == f"{dsc} ({MISSING})"
    assert row[2].startswith(nsd)
    assert row[3] == f"{liver['hd95_mm']:.1f}"
    assert row[6] == "3"
    positive = f"{positive['dsc'] * 100:.2f}"
    row = row_of(html, "Tumour, only cases with one")
    assert row[1].startswith(positive)
    assert row[6] == "2"
    assert row_of(html, "This run, student stage2, seed 0")[1] == "this run's validation, 3 cases"
    block = text.split("student stage2, seed 0")[1]
    assert re.search(rf"^Liver +{dsc} +{nsd} +3 ", block, re.MULTILINE)
    assert re.search(rf"^Tumour, only cases with one +{positive} ", block, re.MULTILINE)
    assert f"{summary['organs']['dsc'] * 100:.2f}" in block
    assert "lesions, validation: 2 of 2 found (100 %), 0 of 2 predicted are false" in block
    assert text.endswith("report.html\n" + str(tree.root / "overlay.png") + "\n")


def test_three_cases_have_no_interval_and_it_says_why(made):
    html, _, text = made
    words = Page(html).words
    assert re.search(r"Organs, DSC *\d\d\.\d\d % *no interval", words)
    assert "“No interval”: from fewer than 5 cases, or as few of one of the classes." in words
    assert "“–” stands for an interval from fewer than 5 cases" in words
    assert "bootstrap samples of the cases lie between" not in words
    assert "(no interval from fewer than 5 cases), NSD" in words  # of the teacher
    assert row_of(html, "All sizes")[3] == f"100.0 ({MISSING})"
    reason = f"95 % intervals of DSC, validation: {MISSING}, no interval from fewer than 5 cases"
    assert reason in text.splitlines()


def test_what_a_summary_says_is_in_the_report(tree, made):
    """As of enough organs and too few tumours, a class known in one case, and equal labels."""
    path = Path(tree.root, "round-1/scores/stage2/seed-0/validation/summary.json")
    before = path.read_text()
    summary = json.loads(before)
    ends = {"dsc_interval": [0.62, 0.871], "nsd_interval": [0.5, 0.6]}
    for entry in (*summary["classes"].values(), *(summary[key] for key in ("organs", "all"))):
        entry.update(ends)
    summary["classes"]["spleen"]["cases"] = 1
    summary["equal_cases"] = 3
    path.write_text(json.dumps(summary))
    try:
        html, _, text = tree.report()
    finally:
        path.write_text(before)
    words = Page(html).words
    over = "means over 3 validation cases, of a class over those in which it is known (1 to 3); “if"
    assert over in words
    equal = "WARNING: predictions that are equal to their references: 3 of 3. Are they copies? Then"
    assert words.count(equal) == 2
    assert f"validation: {equal}" in text
    assert row_of(html, "Liver")[1].endswith(f" (62.0{DASH}87.1)")
    assert re.search(rf"Organs, DSC *\d\d\.\d\d % *62.0{DASH}87.1", words)
    assert "Small: what 95 % of 50 bootstrap samples of the cases lie between." in words
    assert (
        f"95 % intervals of DSC, validation: organs 62.0{DASH}87.1, all 62.0{DASH}87.1, tumour, if "
        f"any {MISSING} ({MISSING}: no interval from fewer than 5 cases)"
    ) in text


def test_what_lifts_the_means_is_said_beside_them(tmp_path):
    html, _, text = Tree(tmp_path, tumours=False, test=False, validated="liver,tumour").report()
    absent = "In no reference: Tumour; such a class counts 100 where it is not predicted, else 0; "
    absent += "without it the means are: all classes DSC 82.94, NSD 100.00."
    unknown = "Known in no case, so in no mean: 12 of 14 classes."
    words = Page(html).words
    for said in (absent, unknown):
        assert words.count(said) == 2  # at a glance and by class
        assert f"validation: {said}" in text.splitlines()
    assert row_of(html, "Mean of all classes")[1].startswith("91.47")
    assert row_of(html, "Classes in a reference")[1].startswith("82.94")
    assert re.search(r"^Classes in a reference +82.94 +100.00$", text, re.MULTILINE)
    title = "This run, student stage2, seed 0, classes in a reference"
    assert [cell[:5] for cell in row_of(html, title)[2:5]] == ["82.94", MISSING, "82.94"]


def test_where_nothing_lifts_the_means_nothing_is_said(made):
    html, _, text = made
    for page in (html, text):
        for said in ("In no reference", "in a reference", "in no mean:", "are equal to their"):
            assert said not in page


def test_phantoms_are_called_synthetic_and_not_compared(made):
    html, _, text = made
    assert "Synthetic data, not for clinical use" in html
    assert "synthetic data, not for clinical use" in text
    assert "88.53" not in html


def test_picture_is_a_png_and_all_is_deterministic(tree, made):
    picture = Image.open(io.BytesIO(made[1]))
    assert picture.format == "PNG"
    assert picture.width > picture.height > 300
    assert tree.report() == made


def test_teacher_and_fusion_are_described(tree, made):
    html, _, _ = made
    words = Page(html).words
    assert (
        "The tumour is unknown in 2 training cases; the teacher found one in 2 of them, "
        "2.5 (2.0 to 3.0) ml in a case."
    ) in words
    assert row_of(html, "not selected: tumour is not annotated") == [
        "not selected: tumour is not annotated",
        "2",
    ]
    assert "Tumour-free cases: 1, of which 0 got a tumour predicted" in words
    assert row_of(html, "Training") == ["Training", "1.5 hours in all, on not recorded"]


def test_what_can_be_missing_may_be_missing(tmp_path):
    tree = Tree(tmp_path, test_labels=False, tumour_free=False, progress=False)
    html, _, text = tree.report()
    page = Page(html)
    assert "In no test case is any class known: no scores." in page.words
    assert page.words.count("No learning curve was recorded.") == 2
    assert "test, cases" not in text
    assert "tumour-free case counts" not in text
    # It is no phantom: published results stand beside, each with its split.
    assert row_of(html, "Reference method (team zzm3zz)")[1:3] == [
        "FLARE23 validation, 50 cases",
        "88.53",
    ]
    assert "Validation and test cases without a label" in page.words


def test_a_run_with_nothing_that_can_be_missing_has_a_report(tmp_path):
    tree = Tree(tmp_path, validation=False, test=False, organs=False, doubt=False, progress=False)
    html, picture, text = tree.report()
    page = Page(html)
    for split in ("validation", "test"):
        assert f"In no {split} case is any class known: no scores." in page.words
    assert "Nothing is scored, so there is nothing to rank." in page.words
    assert "In no validation case are tumours known: the teacher has no scores." in page.words
    assert "None: nothing is doubtful in any training case." in page.words
    assert "no class is known in any validation or test case: no scores" in text
    assert Image.open(io.BytesIO(picture)).format == "PNG"
    alts = " ".join(picture["alt"] for picture in page.pictures)
    assert "Learning curves" not in alts
    assert "organ, " not in alts
    assert all(link[1:] in page.ids for link in page.links)


def test_tumours_may_be_nowhere_or_unknown_in_validation(tmp_path):
    html, _, text = Tree(tmp_path / "none", tumours=False).report()
    assert "lesions, validation: 0 of 0 found, 0 of 0 predicted are false" in text
    assert row_of(html, "Tumour, only cases with one")[1] == MISSING
    assert row_of(html, "All sizes")[1:] == ["0", "0", MISSING, "0", "0", MISSING]
    html, _, text = Tree(tmp_path / "unknown", validated="liver,spleen", test=False).report()
    assert "In no labelled validation case are tumours known" in Page(html).words
    assert "lesions, validation" not in text
    assert row_of(html, "Pancreas")[1:4] == [MISSING, MISSING, MISSING]
    assert row_of(html, "val_1")[5] == "unknown"


def test_nothing_may_be_known_in_validation(tmp_path):
    html, _, text = Tree(tmp_path, validated="none").report()
    page = Page(html)
    assert "In no validation case is any class known: no scores." in page.words
    assert "unknown in the case: in no mean" in html
    assert "test, cases: 1" in text
    assert "validation, cases" not in text
    assert "#case:test_1" in page.links


def test_only_tumours_may_be_known_in_validation(tmp_path):
    html, _, _ = Tree(tmp_path, validated="tumour", test=False).report()
    row = row_of(html, "val_1")
    assert row[1:5] == [MISSING, MISSING, MISSING, MISSING]
    assert row[5] == "in both"


def test_without_validation_labels_test_cases_are_shown(tmp_path):
    html, _, _ = Tree(tmp_path, validation=False).report()
    page = Page(html)
    assert "In no validation case is any class known: no scores." in page.words
    assert "means over 1 test case;" in page.words
    assert "#case:test_1" in page.links


def test_pictures_that_are_left_out_are_counted(tree, monkeypatch):
    monkeypatch.setattr(report, "Gallery", lambda: Gallery(budget=400_000))
    html, _, _ = tree.report()
    page = Page(html)
    assert "Pictures left out, to keep this file small:" in page.words
    assert sum(len(picture["src"]) for picture in page.pictures) < 400_000 * 1.4
    assert all(link[1:] in page.ids for link in page.links)


def test_gate_is_described(made):
    html, _, text = made
    words = Page(html).words
    assert "<strong>" + FALSE + "</strong>" in html
    assert FALSE in text.splitlines()
    assert "For information only: no student of this report learnt by these decisions." in words
    assert "volume below gate.tumour.min_ml" in words
    assert "Label stability" not in words


def doubtful_part(page: Page) -> str:
    """The text of the section."""
    return page.text[page.text.index("Most doubtful cases") : page.text.index("Cases that teach")]


def test_doubtful_cases_come_with_what_opens_them(tree, made):
    html, _, _ = made
    page = Page(html)
    doubtful = doubtful_part(page)
    assert doubtful.index("1. plain_1") < doubtful.index("2. four_1")
    assert "liver_1" not in doubtful
    place = tree.root / "round-1/fusion/stage2" / TRAIN
    for ending in ("", "_source"):
        image = tree.root / "data/plain_1_image.nii.gz"
        assert f"itksnap -g {image} -s {place}/plain_1{ending}.nii.gz\n" in doubtful + "\n"
    assert "case\tlabel\tnote\nplain_1\tcorrected/plain_1.nii.gz\twhat was wrong" in page.text
    alts = [picture["alt"] for picture in page.pictures if "an axial slice" in picture["alt"]]
    assert [alt.split()[2] for alt in alts] == ["plain_1:", "four_1:"]


def test_corrected_cases_are_no_longer_doubtful_and_changes_are_listed(tmp_path):
    tree = Tree(tmp_path, test_labels=False)
    table = tmp_path / f"round-1/fusion/stage2/{TRAIN}.tsv"
    place = tmp_path / f"round-1/fusion/stage2/{TRAIN}"
    shutil.copy(place / "plain_1.nii.gz", place / "plain_1_automatic.nii.gz")
    lines = table.read_text()
    checksum = re.search(r"plain_1\.nii\.gz:(\w+)", lines).group(1)
    added = f"plain_1_automatic.nii.gz:{checksum} plain_1.nii.gz"
    table.write_text(lines.replace("plain_1.nii.gz", added, 1))
    tree.config["corrections"] = "my & corrections.tsv"
    tree.changes(
        [
            {
                "case": "changed_1", "what": "spleen", "before": "unknown", "after": "absent",
                "note": "taken out",
            }
        ],
        [{"case": "mended_1", "file": "test_1.nii.gz", "shift_mm": "0.31"}],
    )  # fmt: skip
    html, _, _ = tree.report()
    page = Page(html)
    assert "Cases with a corrected label of yours, left out here: 1." in page.words
    assert "1. four_1" in page.text
    assert "plain_1" not in doubtful_part(page)
    assert "the corrections file of this run, my & corrections.tsv" in page.words
    assert row_of(html, "changed_1")[1:] == ["spleen", "unknown", "absent", "taken out"]
    assert row_of(html, "mended_1")[1:] == ["test_1.nii.gz", "0.31"]


def test_nothing_changed_is_not_mentioned(made):
    words = Page(made[0]).words
    assert "Corrections that were applied" not in words
    assert "Repaired headers" not in words


def test_later_rounds_and_the_gate(tmp_path):
    tree = Tree(tmp_path, test_labels=False, variants=("gated",), rounds=2, folds=1)
    html, _, text = tree.report()
    words = Page(html).words
    assert "Round 2: the student's (gated) pseudo-labels" in words
    assert words.count("Students of the variant gated learnt by these decisions") == 2
    assert "Networks relabelled cases that they trained on (folds: 1)" in words
    assert row_of(html, "2") == ["2", "gated", "3", "0.200 (0.100 to 0.400)"]
    assert "Student gated, round 2, seed 0, means over" in words
    assert "Round 2, gated: without what the gate does not trust" in words
    assert "Stage 2: + organ pseudo-labels" not in words
    assert f"{tmp_path}/round-2/fusion/gated/{TRAIN}/plain_1.nii.gz" in html
    assert row_of(html, "Labels learnt")[1] == "gated; 2 rounds, cases relabelled by one network"
    assert "student gated, round 2, seed 0" in text
    assert text.count(FALSE) == 1


def test_partial_labels_alone_have_a_report(tmp_path):
    tree = Tree(tmp_path, test_labels=False, variants=("partial",))
    page = Page(tree.report()[0])
    assert "Partial labels" in page.words
    assert "Stage 1: " not in page.words
    # The case without a label has nothing fused, and no picture.
    assert "It has no fused label." in page.words
    assert f"itksnap -g {tree.root}/data/plain_1_image.nii.gz\n" in page.text + "\n"
    assert len([p for p in page.pictures if "an axial slice" in p["alt"]]) == 1


def test_summary_says_what_tumour_free_cases_count(made):
    note = "a tumour-free case counts 100 for the tumour if none is predicted, else 0"
    assert note in made[2].splitlines()
