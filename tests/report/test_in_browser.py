"""Reports in a browser: a threshold that moves, a list, a viewer, and marks."""

from __future__ import annotations

import csv
import io
import os
from pathlib import Path

import numpy as np
import pytest
from images import blobs
from reports import HOSTILE

from skanomaly_vit.calibration import conformal_threshold, false_alarm_bound

CELLS = [f"cell {i}" for i in range(26)]

SCREENS = {"desktop": (1280, 900), "phone": (390, 844)}


def names_shown(tab):
    return tab.locator("#images tbody .name bdi").all_text_contents()


def live(tab, key):
    return tab.text_content(f'[data-live="{key}"] strong')


def percent(share):
    return f"{100 * share:.1f}\xa0%"


def download(tab, button):
    with tab.expect_download() as waiting:
        tab.click(button)
    return waiting.value


def read(tab, button):
    """Rows of a table that a button saves."""
    with open(download(tab, button).path(), newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def load(tab, content, name="marks.csv"):
    content = content if isinstance(content, bytes) else content.encode()
    before = tab.text_content("#marks-state")
    file = {"name": name, "mimeType": "text/csv", "buffer": content}
    tab.set_input_files("#load-marks", files=[file])
    tab.wait_for_function(
        "b => document.getElementById('marks-state').textContent !== b", arg=before
    )
    return tab.text_content("#marks-state")


def mark(tab, name, kind):
    tab.locator("#images tbody tr", has_text=name).get_by_role("button", name=kind).click()


# The threshold


def test_all_numbers_follow_the_slider(visit, calibrated, mixed, y):
    labels = np.where(y == 1, "good", "crack").astype(object)
    labels[-2:] = "dent"
    report = {"anomaly_label": ["crack", "dent"]}
    tab = visit(labels=labels, report=report, viewport={"width": 1280, "height": 900})
    scores = calibrated.score_samples(mixed)
    box = tab.locator("#threshold").bounding_box()
    middle = box["y"] + box["height"] / 2
    before = live(tab, "threshold")
    tab.mouse.move(box["x"] + 10, middle)
    tab.mouse.down()
    tab.mouse.move(box["x"] + 0.7 * box["width"], middle, steps=5)
    tab.mouse.up()
    threshold = tab.evaluate("decision.threshold")
    assert live(tab, "threshold") != before
    flagged = scores < threshold
    assert 0 < flagged.sum() < 26
    assert live(tab, "flagged") == str(flagged.sum())
    assert live(tab, "found") == str(flagged[y == -1].sum())
    assert live(tab, "false") == str(flagged[y == 1].sum())
    below = (calibrated.calibration_scores_ < threshold).sum()
    assert live(tab, "expected") == percent((below + 1) / 41)
    counts = tab.locator("#kinds .flagged-count").all_text_contents()
    assert counts == [str(flagged[labels == kind].sum()) for kind in ("crack", "dent", "good")]
    words = tab.locator("#images .flagged span").all_text_contents()
    assert words == np.where(np.sort(scores) < threshold, "flagged", "passed").tolist()
    line = tab.locator("#threshold-line").bounding_box()
    thumb = box["x"] + 10 + (box["width"] - 20) * tab.evaluate("placeOf(decision.threshold)")
    assert line["x"] == pytest.approx(thumb, abs=3)
    tab.click("#threshold-back")
    assert live(tab, "threshold") == before
    assert live(tab, "flagged") == str((scores < calibrated.offset_).sum())


def test_an_arrow_key_flags_one_image_more(visit, calibrated, mixed):
    tab = visit()
    slider = tab.get_by_role("slider", name="Threshold")
    slider.focus()
    tab.keyboard.press("Home")
    assert live(tab, "flagged") == "0"
    steps = tab.evaluate("candidates.length")
    seen = []
    for _ in range(steps - 1):
        tab.keyboard.press("ArrowRight")
        seen.append(int(live(tab, "flagged")))
    assert sorted(set(seen)) == [*range(min(seen), 27 - 1)]
    text = slider.get_attribute("aria-valuetext")
    assert text.endswith(f"{seen[-1]} of 26 flagged, {live(tab, 'expected')} false alarms expected")
    tab.keyboard.press("PageDown")
    assert tab.evaluate("candidates.indexOf(decision.threshold)") == steps - 21


@pytest.mark.parametrize("groups", [None, np.arange(40) // 5])
def test_rates_and_bounds_are_those_of_the_detector(visit, calibrated, groups):
    known = calibrated.calibration_scores_
    calibrated.calibrate(known, groups)
    tab = visit()
    thresholds = np.sort([*known, *(known + 0.5)])
    found = tab.evaluate("ts => ts.map(t => [expectedRate(t), rateBound(t)])", thresholds.tolist())
    curve = false_alarm_bound(known, groups=groups)
    n_units = 40 if groups is None else 8
    n_below = np.array([(known < t).sum() for t in thresholds])
    k = np.searchsorted(curve.threshold, thresholds)
    bounds = [curve.bound[i] if i < n_units else 1 for i in k]
    expected = (1 + n_below * n_units / 40) / (n_units + 1)
    np.testing.assert_allclose(found, np.transpose([expected, bounds]), atol=1e-6)
    for level in (0.05, 0.1, 0.2) if groups is None else (0.2,):
        tab.get_by_label("False alarms, at most").select_option(str(level))
        chosen = tab.evaluate("decision.threshold")
        assert chosen == conformal_threshold(known, level, groups=groups)
    disabled = tab.locator("#threshold-rate option[disabled]").all_text_contents()
    assert ["1 % on average" in disabled, "10 % on average" in disabled] == [
        True,
        groups is not None,
    ]


def test_a_threshold_can_be_typed(visit, calibrated, mixed):
    tab = visit()
    tab.get_by_label("Threshold", exact=True).and_(tab.locator("[type=number]")).fill("-1.5")
    tab.keyboard.press("Tab")
    assert live(tab, "flagged") == str((calibrated.score_samples(mixed) < -1.5).sum())


# The list


def test_sorts_by_any_column(visit, calibrated, mixed):
    tab = visit(report={"names": CELLS})
    scores = calibrated.score_samples(mixed)
    by_score = [f"cell {i}" for i in np.argsort(scores, kind="stable")]
    assert names_shown(tab) == by_score
    tab.click("button[data-key=score]")
    assert names_shown(tab) == by_score[::-1]
    sorts = "cells => cells.map(c => [c.textContent, c.getAttribute('aria-sort')])"
    state = dict(tab.eval_on_selector_all("#images thead th", sorts))
    assert {text: value for text, value in state.items() if value} == {"Score": "descending"}
    tab.focus("button[data-key=name]")
    tab.keyboard.press("Enter")
    assert names_shown(tab) == CELLS  # 2 before 10
    tab.click("button[data-key=label]")
    labels = tab.locator("#images tbody .labelled").all_text_contents()
    assert labels == sorted(labels)
    tab.get_by_label("Sort by").select_option("closest to the threshold")
    distance = np.abs(scores - calibrated.offset_)
    assert names_shown(tab) == [f"cell {i}" for i in np.argsort(distance, kind="stable")]
    assert tab.locator("#images [aria-sort]").count() == 0


def test_filters_by_name_verdict_folder_label_and_mark(visit, calibrated, mixed):
    names = [f"{'left' if i % 2 else 'right'}/Cell {i}" for i in range(26)]
    tab = visit(report={"names": names})
    flags = calibrated.score_samples(mixed) < calibrated.offset_
    tab.get_by_label("Name contains").fill("cELL 1")
    assert {*names_shown(tab)} == {names[i] for i in [1, *range(10, 20)]}
    assert tab.text_content("#count") == "11 of 26 images"
    tab.get_by_label("Folder").select_option("left")
    assert {*names_shown(tab)} == {names[i] for i in [1, 11, 13, 15, 17, 19]}
    tab.click("#reset")
    assert len(names_shown(tab)) == 26
    tab.get_by_label("Show").and_(tab.locator("select")).select_option("flagged")
    assert {*names_shown(tab)} == {name for name, flag in zip(names, flags, strict=True) if flag}
    tab.get_by_role("slider", name="Threshold").press("Home")
    assert names_shown(tab) == []
    assert tab.is_visible("#none")
    tab.click("#reset")
    tab.locator("#filter-label").select_option("anomaly")
    assert {*names_shown(tab)} == set(names[20:])
    tab.click("#reset")
    mark(tab, "Cell 25", "defect")
    tab.locator("#filter-mark").select_option("defect")
    assert names_shown(tab) == [names[25]]
    mark(tab, "Cell 25", "defect")
    assert names_shown(tab) == [names[25]]  # it does not slip away under the mouse
    tab.locator("#filter-mark").select_option("none")
    assert len(names_shown(tab)) == 26


def test_shows_a_page_of_many_images_at_a_time_and_prints_all(visit, rng):
    tab = visit(blobs(rng, 120), None, report={"n_maps": 0})
    first = names_shown(tab)
    assert len(first) == 50
    tab.get_by_role("button", name="Next page").click()
    tab.get_by_role("button", name="Next page").click()
    assert tab.text_content("#page") == "Page 3 of 3"
    tab.get_by_role("button", name="Next page").click(force=True)  # as there is none
    assert len(names_shown(tab)) == 20
    tab.emulate_media(media="print")
    tab.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert len({*names_shown(tab)}) == 120
    assert tab.is_visible("#count")
    assert not tab.is_visible("#filter-name")
    tab.emulate_media(media="screen")
    tab.evaluate("dispatchEvent(new Event('afterprint'))")
    assert len(names_shown(tab)) == 20
    tab.get_by_label("Images a page").select_option("100")
    assert names_shown(tab)[:50] == first
    assert len(names_shown(tab)) == 100


def test_the_list_is_a_table_that_runs_no_formula(visit, calibrated, mixed):
    names = ["=1+1", "+x", "-y", "@z", "\uff1dw", 'say "a, b"', *CELLS[6:]]
    tab = visit(report={"names": names})
    mark(tab, "cell 9", "fine")
    tab.get_by_label("Name contains").fill("cell 9")
    header, row = read(tab, "#save-table")
    assert header == ["path", "score", "decision", "flag", "p_value", "label", "mark", "note"]
    score = calibrated.score_samples(mixed[9:10])[0]
    assert float(row[1]) == score
    assert float(row[2]) == pytest.approx(score - calibrated.offset_)
    flag = str(score < calibrated.offset_)
    assert [row[0], row[3], *row[5:]] == ["cell 9", flag, "normal", "fine", ""]
    tab.click("#reset")
    paths = {row[0] for row in read(tab, "#save-table")[1:]}
    assert paths == {f"'{name}" for name in names[:5]} | {*names[5:]}


# The viewer


def test_enlarges_images_one_after_the_other(visit, calibrated, mixed):
    tab = visit(report={"names": CELLS})
    order = [f"cell {i}" for i in np.argsort(calibrated.score_samples(mixed), kind="stable")]
    viewer = tab.get_by_role("dialog")
    tab.get_by_role("button", name=f"Enlarge {order[1]}", exact=True).last.click()
    assert viewer.get_by_role("heading").text_content() == order[1]
    assert viewer.get_by_text("2 of 26", exact=True).first.is_visible()
    tab.keyboard.press("ArrowRight")
    tab.keyboard.press("ArrowRight")
    assert viewer.get_by_role("heading").text_content() == order[3]
    viewer.get_by_role("button", name="Previous").click()
    for _ in range(5):
        tab.keyboard.press("ArrowLeft")  # and no farther than the first
    assert viewer.get_by_role("heading").text_content() == order[0]
    opacity = viewer.get_by_role("slider", name="Map")
    layer = viewer.locator(".map")
    opacity.fill("0")
    assert layer.evaluate("e => getComputedStyle(e).opacity") == "0"
    opacity.press("ArrowRight")  # moves the slider, not to the next image
    assert layer.evaluate("e => getComputedStyle(e).opacity") == "0.05"
    assert viewer.get_by_role("heading").text_content() == order[0]
    assert layer.evaluate("e => [e.width, e.height]") == viewer.locator(".picture").evaluate(
        "e => [e.width, e.height]"
    )
    viewer.get_by_role("button", name="Next").focus()
    tab.keyboard.press("ArrowRight")
    tab.keyboard.press("ArrowRight")
    tab.keyboard.press("Escape")
    assert not viewer.is_visible()
    focused = tab.evaluate("document.activeElement.getAttribute('aria-label')")
    assert focused == f"Enlarge {order[2]}"


def test_says_which_images_have_no_large_copy_and_no_map(visit):
    tab = visit(report={"n_maps": 1})
    tab.get_by_label("Sort by").select_option("most normal")
    tab.locator("#images .open").first.click()
    viewer = tab.get_by_role("dialog")
    assert viewer.get_by_text("holds a small copy of this image only").is_visible()
    assert not viewer.get_by_role("slider", name="Map").is_visible()
    tab.keyboard.press("Escape")
    tab.locator("#abnormal .open").click()
    assert not viewer.get_by_text("holds a small copy of this image only").is_visible()
    assert viewer.get_by_text("1 of 1", exact=True).is_visible()


def test_keys_mark_and_a_note_takes_letters(visit):
    tab = visit(report={"names": CELLS})
    tab.locator("#images .open").first.click()
    viewer = tab.get_by_role("dialog")
    note = viewer.get_by_role("textbox", name="Note")
    assert note.is_disabled()
    tab.keyboard.press("f")
    pressed = viewer.locator("[aria-pressed=true]")
    assert pressed.all_text_contents() == ["fine"]
    tab.keyboard.press("d")
    assert pressed.all_text_contents() == ["defect"]
    note.click()
    tab.keyboard.type("fed off")
    tab.keyboard.press("ArrowLeft")
    assert note.input_value() == "fed off"
    assert pressed.all_text_contents() == ["defect"]
    viewer.get_by_role("button", name="Next").click()
    assert note.input_value() == ""
    assert pressed.count() == 0
    tab.keyboard.press("Escape")
    row = tab.locator("#images tbody tr").first
    assert row.locator("[aria-pressed=true]").all_text_contents() == ["defect"]
    assert row.get_by_text("fed off").is_visible()


# Marks


@pytest.mark.parametrize("screen", SCREENS)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_drag_mark_download_and_load_again(visit, screen, scheme):
    width, height = SCREENS[screen]
    options = {"viewport": {"width": width, "height": height}, "color_scheme": scheme}
    tab = visit(report={"names": CELLS}, has_touch=screen == "phone", **options)
    box = tab.locator("#threshold").bounding_box()
    tab.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    tab.mouse.down()
    tab.mouse.move(box["x"] + 0.97 * box["width"], box["y"] + box["height"] / 2, steps=4)
    tab.mouse.up()
    assert int(live(tab, "flagged")) > 6
    assert tab.text_content("#marks-state") == "No marks."
    assert tab.locator("#save-marks").is_disabled()
    mark(tab, "cell 7", "fine")
    mark(tab, "cell 21", "defect")
    mark(tab, "cell 22", "defect")
    mark(tab, "cell 22", "defect")  # and back
    tab.get_by_role("button", name="Enlarge cell 21").last.click()
    tab.get_by_role("textbox", name="Note").fill('a "scratch",\nsecond line')
    tab.keyboard.press("Escape")
    assert tab.text_content("#marks-state").startswith("1 fine, 1 defect.")
    saved = download(tab, "#save-marks")
    assert saved.suggested_filename == "marks.csv"
    content = Path(saved.path()).read_bytes()
    assert content.startswith(b"path,mark,note\r\n")
    rows = {tuple(row) for row in csv.reader(io.StringIO(content.decode(), newline=""))}
    assert rows == {
        ("path", "mark", "note"),
        ("cell 7", "fine", ""),
        ("cell 21", "defect", 'a "scratch",\nsecond line'),
    }
    assert "Not saved" not in tab.text_content("#marks-state")
    assert tab.evaluate("document.documentElement.scrollWidth") <= width

    other = visit(report={"names": CELLS}, **options)
    assert other.text_content("#marks-state") == "No marks."
    assert load(other, content).startswith("2 marks loaded from marks.csv. 1 fine, 1 defect.")
    assert read(other, "#save-marks") == read(tab, "#save-marks")


def test_the_browser_keeps_marks(visit):
    tab = visit(report={"names": CELLS})
    mark(tab, "cell 7", "fine")
    tab.reload()
    assert tab.text_content("#marks-state").startswith("1 fine, 0 defect. This browser keeps them")
    assert read(tab, "#save-marks")[1:] == [["cell 7", "fine", ""]]
    remove = tab.locator("#remove-marks")
    remove.click()
    assert remove.text_content() == "Really remove 1?"
    remove.click()
    tab.reload()
    assert tab.text_content("#marks-state") == "No marks."


FORBIDDEN = """Object.defineProperty(window, "localStorage", {
    get() { throw new DOMException("not here", "SecurityError"); },
})"""


def test_marks_live_in_the_page_where_the_browser_keeps_nothing(visit):
    tab = visit(report={"names": CELLS}, init=FORBIDDEN)
    mark(tab, "cell 7", "fine")
    assert "save them before you close the page" in tab.text_content("#marks-state")
    asked = []
    tab.on("dialog", lambda dialog: (asked.append(dialog.type), dialog.dismiss()))
    tab.close(run_before_unload=True)
    for _ in range(50):
        if asked:
            break
        tab.context.pages[0].wait_for_timeout(50)
    assert asked == ["beforeunload"]
    assert read(tab, "#save-marks")[1:] == [["cell 7", "fine", ""]]


def test_marks_of_any_path_and_note_come_back(visit):
    names = [
        "=1+1",
        "-a/b.png",
        "no utf-8: \udcff\udc80.png",
        'x "y", z',
        "caf\u00e9 \U0001f600",
        "plain",
    ]
    notes = ["=SUM(A1)", "'=quoted", "'", "", "\u00fc\r\n\U0001f600", " x "]
    tab = visit(report={"names": [*names, *CELLS[6:]]})
    tab.evaluate(
        """notes => notes.forEach(([path, note]) => {
            const image = images.find(image => image.path === path);
            setMark(image, {mark: "defect", note});
        })""",
        [[name, note] for name, note in zip(names, notes, strict=True) if "\udcff" not in name],
    )
    tab.evaluate("toggleMark(images.find(image => image.path.startsWith('no utf')), 'fine')")
    content = Path(download(tab, "#save-marks").path()).read_bytes()
    rows = dict(row[:2] for row in csv.reader(io.StringIO(os.fsdecode(content), newline="")))
    del rows["path"]
    assert {os.path.normpath(path) for path in rows} == {*names}
    assert not [path for path in rows if path.startswith(("=", "-"))]
    assert not [cell for cell in rows.values() if cell.startswith("=")]
    other = visit(report={"names": [*names, *CELLS[6:]]})
    state = load(other, b"\xef\xbb\xbf" + content)
    assert state.startswith("6 marks loaded")
    both = [
        page.evaluate("images.map(image => [image.rank, markOf(image).mark, markOf(image).note])")
        for page in (tab, other)
    ]
    assert both[0] == both[1]


@pytest.mark.parametrize(
    ("content", "state"),
    [
        ("path,mark\na,fine\n", "was not loaded: its header is not path,mark,note."),
        ("", "was not loaded: its header is not path,mark,note."),
        ("path,mark,note\ncell 1,bad,\n", 'row 2 has the mark "bad", not fine or defect.'),
        ('path,mark,note\n"cell 1,fine,\n', "was not loaded: row 2 is not CSV."),
        (
            "path,mark,note\ncell 1,fine,\nelsewhere/<b>.png,fine,\nc,fine,\n",
            "2 more are of images that this page lacks, first elsewhere/<b>.png.",
        ),
        (
            "note,x,mark,path\r\nn,,defect,./cell 2",
            "1 marks loaded from marks.csv. 0 fine, 1 defect",
        ),
    ],
)
def test_a_table_of_marks_is_read_whole_or_refused(visit, content, state):
    tab = visit(report={"names": CELLS})
    assert state in load(tab, content)
    assert tab.locator("#marks-state b").count() == 0
    assert tab.evaluate("marks.size") == int("marks loaded" in state or "lacks" in state)


# Everywhere


def test_hostile_names_stay_text_in_a_browser(visit):
    names = (HOSTILE * 3)[:26]
    tab = visit(report={"names": names, "title": HOSTILE[0]})
    assert tab.title() == HOSTILE[0]
    assert tab.evaluate("window.hacked") is None
    assert tab.locator("h1").all_text_contents() == [HOSTILE[0]]
    assert tab.locator("script").count() == 2
    cells = names_shown(tab)
    assert set(HOSTILE[:5]) <= set(cells)
    assert len(cells) == 26
    tab.fill("#filter-name", "<script>")
    assert {*names_shown(tab)} == {HOSTILE[0]}
    tab.locator("#images .open").first.click()
    assert tab.get_by_role("dialog").get_by_role("heading").text_content() == HOSTILE[0]
    assert tab.evaluate("window.hacked") is None


@pytest.mark.parametrize("folder", [False, True])
def test_all_pictures_can_be_seen(visit, folder):
    tab = visit(report={"folder": folder})
    broken = """async images => {
        const shown = images.filter(image => image.getAttribute("src"));
        for (const image of shown) {
            image.loading = "eager";
            await image.decode();
        }
        return shown.filter(image => image.naturalWidth).length;
    }"""
    assert tab.eval_on_selector_all("img", broken) == 26 + 2 * 4 * 2 + 2
    tab.get_by_label("Sort by").select_option("most normal")
    tab.locator("#images .open").first.click()
    picture = tab.locator("#viewer .picture")
    assert picture.evaluate("async e => { await e.decode(); return e.naturalWidth; }") == 32
    assert tab.get_by_text("holds a small copy of this image only").is_visible() != folder


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_fits_a_narrow_screen(visit, scheme):
    tab = visit(
        report={"names": ["x" * 300] * 26, "title": "y" * 300},
        viewport={"width": 400, "height": 800},
        color_scheme=scheme,
    )
    assert tab.evaluate("document.documentElement.scrollWidth") <= 400
    tab.locator("#abnormal .open").first.click()
    assert tab.evaluate("byId('viewer').scrollWidth") <= 400


def test_every_control_has_a_name_and_can_be_reached_by_keys(visit):
    tab = visit()
    tab.locator("#images .open").first.click()
    nameless = """controls => controls.filter(control => {
        const label = control.labels && control.labels.length && control.labels[0].textContent;
        return !(control.getAttribute("aria-label") || control.textContent || label || "").trim();
    }).map(control => control.outerHTML)"""
    assert tab.eval_on_selector_all("button, input, select, textarea", nameless) == []
    tab.keyboard.press("Escape")
    tab.focus("nav a")
    reached = set()
    for _ in range(40):
        tab.keyboard.press("Tab")
        reached.add(tab.evaluate("document.activeElement.id"))
    wanted = {"threshold", "threshold-score", "filter-name", "sort", "save-marks", "load-marks"}
    assert wanted - {"save-marks"} <= reached  # which is disabled without marks


def test_can_be_read_without_scripts(visit):
    tab = visit(java_script_enabled=False)
    assert tab.locator("noscript tbody tr").count() == 26
    assert tab.is_visible("noscript table")
    assert tab.is_visible(".chart")
    assert not tab.is_visible("#filters")
    assert not tab.is_visible("#threshold")
