"""Load generator and reports, against any OpenAI-compatible URL or an engine in this process."""
