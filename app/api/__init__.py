"""The endpoints: our own, and those of OpenAI's and AUTOMATIC1111's APIs, thin layers over the same parts."""
