"""Forms (multipart/form-data), read by Starlette's parser within bounds, and explained where they are broken."""

import re
from collections.abc import AsyncGenerator, Collection, Mapping, Sequence

from python_multipart.multipart import parse_options_header
from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from app.errors import Error, Problem, plain, quoted
from app.parsing import aliases

FORM_TYPE_CHARS = 500  # of a form's Content-Type; its name and the longest boundary take less
MAX_PARTS = 32  # of a form or a query: more than there are fields
BOUNDARY = re.compile(r"[0-9A-Za-z'()+_,./:=? -]{0,69}[0-9A-Za-z'()+_,./:=?-]")  # RFC 2046, 5.1.1
START_BYTES = 100  # of a body that is not a form, to say what it is
LIBRARY = "Let your HTTP library write Content-Type."
SHORT_TEXT_BYTES = 2**16  # over the limit: such a text is still read, for an error in our own words


async def parsed(
    content_type: str, body: AsyncGenerator[bytes, None], text_bytes: int
) -> tuple[dict[str, str], list[tuple[str, bytes]]]:
    """The fields of a form, of several of a name the last; and its files, with their names.

    A text may have `text_bytes`. Raises Problem.
    """
    chunks = _Chunks(body)
    parser = _FormParser(
        _form_type(content_type),
        chunks.read(),
        max_files=MAX_PARTS,
        max_fields=MAX_PARTS,
        max_part_size=text_bytes + SHORT_TEXT_BYTES,  # of a text; the body's limit bounds files
    )
    try:
        parts = await parser.parse()
    except MultiPartException as error:
        raise Problem(Error.MALFORMED_FORM, _broken_form(error.message, chunks.start)) from None
    texts = {name: value for name, value in parts.multi_items() if isinstance(value, str)}
    files = [(name, await value.read()) for name, value in parts.multi_items() if isinstance(value, UploadFile)]
    await parts.close()
    return texts, [(name, file) for name, file in files if file]  # a browser sends an empty file for none


def image(
    texts: Mapping[str, str], files: Sequence[tuple[str, bytes]], name: str, names: Collection[str]
) -> bytes | str:
    """The one image of a form, by one of some names: a file or a text. Raises Problem for the field `name`."""
    found: list[bytes | str] = [file for given, file in files if given in names]
    found += [text for given, text in texts.items() if given in names and text]
    if len(found) == 1:
        return found[0]
    if found:
        raise Problem(Error.INVALID_FIELD, f"The form has {len(found)} files called {name}; send one.", name)
    others = ", ".join(dict(files)) or aliases.called("input_image_base64", texts)
    detail = f" You sent {plain(others)}: call it {name}." if others else " Send the image as a part with a file name."
    raise Problem(Error.INVALID_FIELD, f"The form has no file called {name}.{detail}", name)


class _Chunks:
    """The chunks of a body; the start is kept for error messages."""

    def __init__(self, chunks: AsyncGenerator[bytes, None]) -> None:
        self.start = b""
        self._chunks = chunks

    async def read(self) -> AsyncGenerator[bytes, None]:
        async for chunk in self._chunks:
            self.start = self.start or chunk[:START_BYTES]
            yield chunk


def _broken_form(message: str, start: bytes) -> str:
    """Explain what is wrong with a form, by the words in Starlette's or its parser's message."""
    for words, explanation in (
        ("Too many", f"The form has more than {MAX_PARTS} parts; no request needs so many."),
        ("maximum size", "A text of the form is too long. Send the image as a file: a part with a file name."),
        ("name", "A part of the form has no name: Content-Disposition: form-data; name=..."),
        ("UTF-8", message),
    ):
        if words in message:
            return explanation
    if start.lstrip()[:1] in (b"{", b"["):
        return "The body is JSON, not a form. Say so in Content-Type: application/json."
    if not start.startswith(b"--"):
        return f"The body does not begin with the boundary in its Content-Type. {LIBRARY}"
    return f"The form is damaged, or its boundary differs from the one in its Content-Type. {LIBRARY}"


def _form_type(content_type: str) -> Headers:
    """The form's media type with only its boundary. Raises Problem for a boundary that RFC 2046 does not allow."""
    _, parameters = parse_options_header(content_type[:FORM_TYPE_CHARS])
    boundary = parameters.get(b"boundary", b"").decode("latin-1")
    if not BOUNDARY.fullmatch(boundary):
        detail = f"The Content-Type has no boundary of 1 to 70 characters (RFC 2046). {LIBRARY}"
        raise Problem(Error.MALFORMED_FORM, detail)
    return Headers({"content-type": f'multipart/form-data; boundary="{boundary}"'})


class _FormParser(MultiPartParser):
    """Accepts only UTF-8 text. Keeps files in memory, bounded by the body's limit, as there may be no disk."""

    spool_max_size = 2**30

    def on_part_end(self) -> None:
        """Starlette's own method would read text that is not UTF-8 as Latin-1."""
        part = self._current_part
        if part.file is not None:
            super().on_part_end()
            return
        try:
            self.items.append((part.field_name, part.data.decode()))
        except UnicodeDecodeError:
            raise MultiPartException(f"The field {quoted(part.field_name)} of the form is not UTF-8.") from None
