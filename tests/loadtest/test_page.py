import pytest
from bertron_loadtest.page import Page, Section, Table, printable, shown, shown_share
from checked_html import CheckedHtml


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        (12034, "12,034"),
        (0, "0"),
        (0.0, "0"),
        (12034.4, "12,034"),
        (123.45, "123"),
        (12.345, "12.3"),
        (1.2345, "1.23"),
        (8.0, "8.00"),
        (0.12345, "0.123"),
        (-1e-14, "0"),
        (-3.5, "-3.50"),
    ],
)
def test_figures_are_shown_with_three_digits(value, text):
    assert shown(value) == text


def test_shares_are_shown_in_percent():
    assert shown_share(0.1234) == "12.3 %"
    assert shown_share(None) == "-"


def test_what_a_terminal_would_obey_is_made_visible():
    assert printable("a\x1b[31m\n\x00\ud800é 日") == "a\\x1b[31m\\n\\x00\\ud800é 日"


def test_a_table_as_text():
    table = Table(
        ("name", "x", "why"), [("a", "1", "so"), ("bcdef", "100", "\x07")], frozenset({2})
    )
    assert table.text() == "name     x  why\na        1  so\nbcdef  100  \\x07"


def test_a_page_is_whole_and_escaped(tmp_path):
    evil = '</td><script>alert("1")</script>&amp;\x00\ud800'
    table = Table(("name", evil), [("<b>", evil)], marked=frozenset({0}))
    sections = [
        Section("One", [evil], ['<svg viewBox="0 0 1 1"><path d="M0 0"/></svg>'], [table]),
        Section("Empty"),
        Section("Folded", tables=[table], folded=True),
    ]
    path = tmp_path / "page.html"
    Page(f"Title {evil}", [evil], False, sections).write(path)
    page = CheckedHtml(path.read_text("utf-8"))
    names = [tag for tag, _ in page.tags]
    assert "script" not in names
    assert "b" not in names
    assert names.count("svg") == 1
    assert names.count("table") == 2
    assert names.count("details") == 1
    assert "Empty" not in page.texts
    assert "FAILED" in page.texts
    assert "PASSED" not in page.texts
    shown_evil = '</td><script>alert("1")</script>&amp;\\x00\\ud800'
    assert page.texts.count(shown_evil) == 2 + 2 * 2  # both notes; heading and cell of both tables
    assert {"class": "marked"} in [attributes for tag, attributes in page.tags if tag == "tr"]


def test_a_page_needs_no_other_file_and_fits_its_reader(tmp_path):
    path = tmp_path / "page.html"
    Page("Title", [], None, []).write(path)
    text = path.read_text("utf-8")
    page = CheckedHtml(text)
    assert not {"src", "href"} & {name for _, attributes in page.tags for name in attributes}
    assert "@import" not in text
    assert "http" not in text
    assert "prefers-color-scheme: dark" in text
    assert "@media print" in text
    assert ("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}) in (
        page.tags
    )
    assert "PASSED" not in page.texts
    assert "FAILED" not in page.texts


def test_every_colour_of_the_pictures_is_a_variable_of_each_theme(tmp_path):
    from bertron_loadtest.plots import CSS_VARIABLES

    path = tmp_path / "page.html"
    Page("Title", [], True, []).write(path)
    text = path.read_text("utf-8")
    for variable in (*CSS_VARIABLES.values(), "--paper", "--good", "--bad"):
        assert text.count(f"{variable}: #") == 3, variable
