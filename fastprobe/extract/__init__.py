"""Models and recordings -> `EmbeddingTable`: the only place that knows transformers, timm and audio packages.

* `text`: class names through a language model (`embed_classes`, `embed_texts`)
* `audio`: recordings through an audio model (`build_table`, `embed_files`)
* `datasets`: FSD50K, ESC-50, UrbanSound8K, a folder, a manifest -> clips
* `names`: class labels -> the words a language model reads

Heavy packages are imported when they are used. `retrieval.query` embeds sounds and texts through this wing; tables, runs
and statistics do without it.
"""
