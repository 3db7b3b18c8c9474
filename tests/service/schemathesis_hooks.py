"""What schemathesis cannot know: that not any base64 is a picture. It is named to it by SCHEMATHESIS_HOOKS."""

import base64

import schemathesis
from hypothesis import strategies as st

from tests.fuzz.seeds import file_of, gradient

PICTURES = [file_of(gradient(mode), kind) for mode, kind in (("RGB", "PNG"), ("L", "JPEG"), ("RGBA", "WEBP"))]

schemathesis.openapi.format("byte", st.sampled_from([base64.b64encode(picture).decode() for picture in PICTURES]))
for kind in ("image/png", "image/jpeg", "image/jpg", "image/webp"):  # the content decides, not the name
    schemathesis.openapi.media_type(kind, st.sampled_from(PICTURES))
