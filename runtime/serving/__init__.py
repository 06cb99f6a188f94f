"""An image server: OpenAI's API over the pipelines."""
