"""Conversations with images: columns and content blocks, in the forms that TRL takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from grpo_lightning.messages import Message
from grpo_lightning.vision.images import images_of_row


def shows_images(prompt: Any) -> bool:
    """Whether a prompt, or any other cell of a row, is messages with content blocks of images."""
    return isinstance(prompt, list) and any(isinstance(each, Mapping) and _image_blocks(each) for each in prompt)


def with_images(row: Mapping[str, Any]) -> tuple[list[Message], list[Any]]:
    """The conversation of a row with a block ``{"type": "image"}`` for each image, and the images in that order, unread.

    Images of the columns ``image`` and ``images`` fill the blocks that hold none; where no message has a block, they go
    before the text of the first message of the user. Images inside blocks (``{"type": "image", "image": ...}``) are taken
    out of them.

    Args:
        row: With ``prompt``, messages.

    Raises:
        ValueError: If the blocks without an image and the images of the columns differ in number.

    Example:
        >>> row = {"prompt": [{"role": "user", "content": "How many?"}], "image": "dots.png"}
        >>> messages, images = with_images(row)
        >>> messages[0]["content"], images
        ([{'type': 'image'}, {'type': 'text', 'text': 'How many?'}], ['dots.png'])
    """
    messages, further = row["prompt"], images_of_row(row)
    if further and not shows_images(messages):
        messages = _before_first_question(messages, len(further))
    blocks = [block for message in messages for block in _image_blocks(message)]
    unfilled = sum(block.get("image") is None for block in blocks)
    if unfilled != len(further):
        raise ValueError(
            f"the messages have {unfilled} blocks of images to be filled, and the columns image and images hold "
            f"{len(further)}. Write one block {{'type': 'image'}} for each image, or none at all."
        )
    waiting = iter(further)
    images = [next(waiting) if block.get("image") is None else block["image"] for block in blocks]
    return [_without_pictures(message) for message in messages], images


def as_blocks(messages: Sequence[Message], images: Sequence[Any] = ()) -> list[Message]:
    """All contents as lists of blocks, which the chat templates of processors read, each image in its block."""
    waiting = iter(images)
    made = []
    for message in messages:
        content = message.get("content")
        if isinstance(content, str):
            content = [{"type": "text", "text": content}]
        elif isinstance(content, list):
            content = [{**b, "image": next(waiting)} if b.get("type") == "image" and images else b for b in content]
        made.append({**message, "content": content})
    return made


def _before_first_question(messages: Sequence[Message], count: int) -> list[Message]:
    for index, message in enumerate(messages):
        content = message.get("content")
        if message.get("role") == "user" and content:
            text = [{"type": "text", "text": content}] if isinstance(content, str) else list(content)
            blocks: list[dict[str, Any]] = [{"type": "image"} for _ in range(count)]
            return [*messages[:index], {**message, "content": [*blocks, *text]}, *messages[index + 1 :]]
    raise ValueError("the row has images and no message of the user that could show them.")


def _image_blocks(message: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    content = message.get("content")
    if not isinstance(content, list):
        return []
    return [block for block in content if isinstance(block, Mapping) and block.get("type") == "image"]


def _without_pictures(message: Message) -> Message:
    if not _image_blocks(message):
        return message
    return {**message, "content": [{"type": "image"} if b.get("type") == "image" else b for b in message["content"]]}
