"""`/docs`: the description for people, to read and to try: Swagger UI, which comes with the service."""

from pathlib import Path

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from app.files import Files

FOLDER = Path(__file__).parent / "docs"
INDEX = "index.html"


class Docs:
    """Answers with the page and the files that it is made of."""

    def __init__(self) -> None:
        self._files = Files(FOLDER)

    @property
    def media_types(self) -> dict[str, str]:
        """The files, and what they are."""
        return self._files.media_types

    async def respond(self, request: Request) -> Response:
        """A file of the page, by default the page itself."""
        return self._files.respond(request, request.path_params.get("name", INDEX))

    async def redirect(self, request: Request) -> Response:
        """To the page, whose relative links need its path without the slash. Relative, as a proxy may have a prefix."""
        return RedirectResponse("../docs", 308)
