"""Readers of models' replies, one for each way in which a reply can hold its fields: for streams and for results.

From the bottom up: text (what all of them do with text), chat, json_object, xml and prose (the readers).
"""
