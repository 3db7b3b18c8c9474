"""`/openapi.json`: the service's own description (OpenAPI 3.1), made from the structs and tables that it works by."""

from app.description.document import Description, describe

__all__ = ["Description", "describe"]
