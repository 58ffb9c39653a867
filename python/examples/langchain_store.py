"""LangChain's FAISS vector store on TurboQuant codes.

    pip install langchain-community
    python langchain_store.py            # TQ4
    python langchain_store.py Flat

The store takes a FAISS index that is made beforehand: make it from a factory
string. Everything else is LangChain as usual.
"""

import sys
import tempfile

import faiss
from data import TEXTS, embed
from langchain_community.docstore.in_memory import InMemoryDocstore
from langchain_community.vectorstores import FAISS
from langchain_community.vectorstores.utils import DistanceStrategy
from langchain_core.embeddings import Embeddings

import faiss_turboquant  # noqa: F401  (adds TurboQuant to faiss)


class HashedWords(Embeddings):
    """In the place of a language model."""

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return [row.tolist() for row in embed(texts)]

    def embed_query(self, text: str) -> list[float]:
        return self.embed_documents([text])[0]


description = sys.argv[1] if len(sys.argv) > 1 else "TQ4"
model = HashedWords()
d = len(model.embed_query(""))
store = FAISS(
    embedding_function=model,
    index=faiss.index_factory(d, description, faiss.METRIC_INNER_PRODUCT),
    docstore=InMemoryDocstore(),
    index_to_docstore_id={},
    distance_strategy=DistanceStrategy.MAX_INNER_PRODUCT,
)
store.add_texts(
    TEXTS,
    metadatas=[{"line": i} for i in range(len(TEXTS))],
    ids=[f"text{i}" for i in range(len(TEXTS))],
)
for document, score in store.similarity_search_with_score("fresh bread", k=2):
    print(f"{score:.2f} {document.page_content}")

# filters, diversity and deletion work as before
(late,) = store.similarity_search("train", k=1, filter={"line": 6})
assert "late" in late.page_content
assert len(store.max_marginal_relevance_search("garden", k=3)) == 3
store.delete(["text3"])

with tempfile.TemporaryDirectory() as folder:
    store.save_local(folder)
    again = FAISS.load_local(
        folder,
        model,
        allow_dangerous_deserialization=True,
        distance_strategy=DistanceStrategy.MAX_INNER_PRODUCT,
    )
retriever = again.as_retriever(search_kwargs={"k": 2})
for document in retriever.invoke("fresh bread"):
    print(document.page_content)
print(type(again.index).__name__, again.index.ntotal)
