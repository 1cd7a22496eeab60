# SPDX-License-Identifier: Apache-2.0
"""The machine's maker, asked through the metadata service that it offers to each of its machines."""
