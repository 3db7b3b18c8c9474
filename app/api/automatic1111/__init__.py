"""AUTOMATIC1111's API (stable-diffusion-webui), with its ControlNet extension, as far as common clients need it."""
