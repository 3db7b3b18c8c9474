"""Getting a model's weights ready: from the hub, a cache or a folder, checked and converted, whole or not at all."""
