"""An interface that others have made, described: its schemas by names of their own, and errors in its own words.

What comes before an endpoint is reached (a connection's errors, a wrong method) is told in ours.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import msgspec
from starlette.responses import Response

from app.description.nodes import ANYWHERE, JSON, Node, example, headers, schema
from app.description.problems import EXAMPLES, problem_header_names, problems, told
from app.desk import Voice
from app.errors import Error

BEFORE = tuple(error for error in ANYWHERE if error is not Error.INTERNAL)


@dataclass(frozen=True, slots=True)
class Dialect:
    """`prefix` goes before the names of its schemas; `voice` answers with a problem, in a body of `error`."""

    tag: str
    prefix: str
    voice: Voice
    error: type

    def name(self, struct: type) -> str:
        """The name of a struct's schema."""
        return f"{self.prefix}.{struct.__name__}"

    def schema(self, struct: type) -> Node:
        """A reference to a struct's schema."""
        return schema(self.name(struct))

    def schemas(self, structs: Sequence[type]) -> Node:
        """The schemas of structs, and of those within them."""
        template = f"#/components/schemas/{self.prefix}.{{name}}"
        _, made = msgspec.json.schema_components([*structs, self.error], ref_template=template)
        return {f"{self.prefix}.{name}": node for name, node in made.items()}

    def problems(self, errors: Iterable[Error]) -> dict[int, Node]:
        """A response for each status that some errors of an endpoint have, or one before it is reached."""
        found = problems(BEFORE)
        by_status: dict[int, dict[Error, Response]] = {}
        for error in errors:
            response = self.voice(EXAMPLES[error])
            by_status.setdefault(response.status_code, {})[error] = response
        for status, told_so in by_status.items():
            found[status] = _both(found.get(status), self._response(told_so))
        return found

    def _response(self, told_so: Mapping[Error, Response]) -> Node:
        examples = {
            error.slug: example(msgspec.json.decode(bytes(response.body)), error.title)
            for error, response in told_so.items()
        }
        names = [name for error in told_so for name in problem_header_names([error])]
        return {
            "description": told(list(told_so)),
            "headers": headers(*dict.fromkeys(names)),
            "content": {JSON: {"schema": self.schema(self.error), "examples": examples}},
        }


def _both(first: Node | None, second: Node) -> Node:
    """A response that is one or the other, told apart by its type."""
    if first is None:
        return second
    return {
        "description": f"{first['description']} {second['description']}",
        "headers": first["headers"] | second["headers"],
        "content": first["content"] | second["content"],
    }


def operation(name: str, tag: str, summary: str, security: list[Node], **rest: object) -> Node:
    """An operation of such an interface."""
    node: Node = {"operationId": name, "tags": [tag], "summary": summary, **rest}
    return node | {"security": security} if security else node
