"""Adapters: Bertron as the embedding model of other libraries.

Each module imports its library, which the extra of the same name brings, for example
``pip install 'bertron[langchain]'``. Nothing else of the client imports them.
"""
