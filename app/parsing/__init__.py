"""From the body of a request to its parameters: each form of body, the image in it, and what is wrong with either."""
