# Copyright 2026 The elastic-encoders authors.
# Licensed under the Apache License, Version 2.0; see the LICENSE file.
"""SHARCS: encoders whose later layers run at several widths, with a router that picks the width of each sample.

Paper: https://huggingface.co/papers/2310.12126
"""
