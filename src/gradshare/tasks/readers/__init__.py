"""Reading images in the forms in which papers and users keep them.

A reader finds the classes of a dataset without decoding an image, as `dataset.FoundClass`.

- `benchmarks` and `omniglot` find those of published datasets;
- `folder` finds those of the user's own images, and `class_splits` puts classes into splits;
- `archives`, `files`, `labelled`, `lists` and `pickles` read the files that these come in.
"""
