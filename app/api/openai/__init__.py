"""OpenAI's Images API, as far as a service can have it that makes images of images."""
