"""Server-sent events as the page reads them (HTML Living Standard, 9.2.6)."""

from typing import Any

import pytest

from tests.page.visiting import Visit

PARSE = """async pieces => {
  const {Parser} = await import('/page/events.js');
  const parser = new Parser();
  return pieces.flatMap(piece => parser.push(piece)).map(({name, data}) => [name, data]);
}"""
STREAM = """: alive
event: step
data: {"done": 1}

data: one
data:two
data

event: none

retry: 5
id: 7
data: last

"""
EVENTS = [["step", '{"done": 1}'], ["message", "one\ntwo\n"], ["message", "last"]]


@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"], ids=["LF", "CRLF", "CR"])
def test_events_are_found_however_they_are_cut(visit: Visit, ending: str) -> None:
    text = STREAM.replace("\n", ending) + ": the end\n"
    for size in (1, 2, 7, 1000):
        pieces = [text[start : start + size] for start in range(0, len(text), size)]
        found: Any = visit.page.evaluate(PARSE, pieces)
        assert found == EVENTS, size


def test_an_event_that_is_not_finished_is_none(visit: Visit) -> None:
    assert visit.page.evaluate(PARSE, ["event: done\ndata: {}\n"]) == []


def test_characters_are_whole_however_their_bytes_are_cut(visit: Visit) -> None:
    found = visit.page.evaluate("""async () => {
      const {events} = await import('/page/events.js');
      const bytes = new TextEncoder().encode('data: h\\u00e9 \\u{1f600}\\n\\n');
      const body = new ReadableStream({start(c) { bytes.forEach(b => c.enqueue(new Uint8Array([b]))); c.close(); }});
      const found = [];
      for await (const {data} of events(body)) found.push(data);
      return found;
    }""")
    assert found == ["h\u00e9 \U0001f600"]


def test_a_connection_that_is_silent_for_too_long_is_given_up(visit: Visit) -> None:
    found = visit.page.evaluate("""async () => {
      const {events} = await import('/page/events.js');
      const body = new ReadableStream({start(c) { c.enqueue(new TextEncoder().encode('data: first\\n\\n')); }});
      const found = [];
      try {
        for await (const {data} of events(body, 50)) found.push(data);
      } catch {
        found.push('given up');
      }
      return found;
    }""")
    assert found == ["first", "given up"]
