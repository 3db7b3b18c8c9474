"""The record of a training's losses: what is written, what is cut, and what people see of it."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from example.demo_model.journal import Entry, Journal


def journal_of(folder: Path, *entries: Entry) -> Journal:
    """A journal with a line for each entry."""
    journal = Journal(folder)
    for entry in entries:
        journal.record(entry)
        journal.write()
    return journal


def test_a_line_has_the_means_of_the_steps_since_the_last(tmp_path: Path) -> None:
    journal = Journal(tmp_path, every_seconds=10)
    journal.record(Entry("vae", 1, 4.0, {"l1": 0.75, "kl": 2.0}))
    journal.record(Entry("vae", 2, 9.0, {"l1": 0.25}))
    assert journal.entries() == []
    journal.record(Entry("vae", 3, 10.5, {"l1": 0.5, "kl": 1.0}))
    journal.record(Entry("vae", 4, 20.0, {"l1": 9.0}))
    assert journal.entries() == [Entry("vae", 3, 10.5, {"l1": 0.5, "kl": 1.5})]


def test_pending_entries_are_written_once_on_demand(tmp_path: Path) -> None:
    journal = Journal(tmp_path, every_seconds=10)
    journal.record(Entry("vae", 1, 0.1, {"l1": 0.5}))
    journal.write()
    journal.write()
    assert journal.entries() == [Entry("vae", 1, 0.1, {"l1": 0.5})]


def test_going_on_after_a_step_cuts_that_stages_later_lines_alone(tmp_path: Path) -> None:
    first, second = Entry("vae", 90, 5.0, {"l1": 0.5}), Entry("diffusion", 10, 1.0, {"v": 0.9})
    later = Entry("diffusion", 20, 2.0, {"v": 0.8})
    journal = journal_of(tmp_path, first, second, later)
    journal.resume("diffusion", 10, 1.0)
    assert journal.entries() == [first, second]
    journal.record(later)
    journal.write()
    assert journal.entries() == [first, second, later]


def test_steps_that_were_not_written_are_forgotten_by_the_next_stage(tmp_path: Path) -> None:
    journal = Journal(tmp_path, every_seconds=10)
    journal.record(Entry("vae", 1, 3.0, {"l1": 0.5}))
    journal.resume("diffusion", 0, 0.0)
    journal.record(Entry("diffusion", 1, 12.0, {"v": 1.0}))
    assert journal.entries() == [Entry("diffusion", 1, 12.0, {"v": 1.0})]


def test_a_line_that_was_cut_short_is_left_out_and_then_cut(tmp_path: Path) -> None:
    whole = Entry("vae", 1, 1.0, {"l1": 0.5})
    journal = journal_of(tmp_path, whole)
    with journal.path.open("a") as file:
        file.write('{"stage": "vae", "st')
    assert journal.entries() == [whole]
    journal.resume("vae", 1, 1.0)
    journal.record(Entry("vae", 2, 2.0, {"l1": 0.4}))
    journal.write()
    assert journal.entries() == [whole, Entry("vae", 2, 2.0, {"l1": 0.4})]


def test_the_table_has_first_and_last_losses_of_each_stage(tmp_path: Path) -> None:
    vae = [Entry("vae", step, 6.0 * step, {"l1": 1 / step}) for step in range(1, 21)]
    rows = journal_of(tmp_path, *vae, Entry("diffusion", 7, 90.0, {"v": 0.25})).table().splitlines()
    assert rows[2:] == [
        "| vae | 20 | 2.0 | l1 | 1 | 0.05132 |",  # the mean of 1/19 and 1/20, a tenth of the lines
        "| diffusion | 7 | 1.5 | v | 0.25 | 0.25 |",
    ]


def test_the_plot_is_an_image_with_a_panel_for_each_stage(tmp_path: Path) -> None:
    entries = [Entry("vae", step, float(step), {"l1": 1 / step, "heads": 0.0}) for step in range(1, 9)]
    one, two = tmp_path / "one.png", tmp_path / "two.png"
    journal_of(tmp_path, *entries).plot(one)
    journal_of(tmp_path, Entry("diffusion", 1, 60.0, {"v": 0.5})).plot(two)
    shorter, taller = image(one), image(two)
    assert taller.shape == (2 * shorter.shape[0], *shorter.shape[1:])
    assert len(np.unique(shorter.reshape(-1, 3), axis=0)) > 10  # there are lines in it


def test_losses_that_are_zero_throughout_can_be_plotted(tmp_path: Path) -> None:
    journal_of(tmp_path, Entry("vae", 1, 1.0, {"heads": 0.0})).plot(tmp_path / "losses.png")
    assert image(tmp_path / "losses.png").size


def test_a_plot_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"losses\.jsonl has no lines; train first"):
        Journal(tmp_path).plot(tmp_path / "losses.png")


def image(path: Path) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    read = cv2.imread(str(path))
    assert read is not None
    return np.asarray(read, np.uint8)
