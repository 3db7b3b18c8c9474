"""OpenAI's Images API, as far as it applies to a service that needs an input image."""
