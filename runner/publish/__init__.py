"""Finished models where they are used: folders of programs, InvokeAI, the Hugging Face hub."""
