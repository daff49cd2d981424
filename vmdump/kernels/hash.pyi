from _typeshed import ReadableBuffer, WriteableBuffer

__all__ = ["KEY_WORDS", "hash_pages"]

KEY_WORDS: int

def hash_pages(data: ReadableBuffer, page_size: int, key: ReadableBuffer, out: WriteableBuffer) -> None: ...
