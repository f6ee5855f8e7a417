"""Refusing inputs whose shapes a model does not take, tensors and arrays alike: nothing here needs torch."""

from typing import Any


def check_input(input_ids: Any, attention_mask: Any, max_tokens: int) -> None:
    """Refuse shapes that do not fit, where the layers would fail with an unrelated message.

    Raises:
        ValueError: `input_ids` is not (B, T), has more tokens than `max_tokens`, or the mask has another shape.
    """
    if len(input_ids.shape) != 2:
        raise ValueError(f"input_ids has shape {tuple(input_ids.shape)}; expected (sentences, tokens)")
    if input_ids.shape[1] > max_tokens:
        raise ValueError(
            f"input_ids has {input_ids.shape[1]} tokens a sentence, the model positions for {max_tokens}; "
            "cut longer text into windows"
        )
    if attention_mask is not None and attention_mask.shape != input_ids.shape:
        raise ValueError(
            f"attention_mask has shape {tuple(attention_mask.shape)}; expected that of input_ids, "
            f"{tuple(input_ids.shape)}"
        )


def check_images(pixel_values: Any, num_channels: int, image_shape: tuple[int, int]) -> None:
    """Refuse images that do not fit, where the layers would fail with an unrelated message.

    Raises:
        ValueError: `pixel_values` is not (B, C, height, width) of these numbers, in floating point.
    """
    shape = tuple(pixel_values.shape)
    if len(shape) != 4:
        raise ValueError(f"pixel_values has shape {shape}; expected (images, channels, height, width)")
    if "float" not in str(pixel_values.dtype):
        raise ValueError(f"pixel_values is {pixel_values.dtype}; expected normalised floating point")
    if shape[1] != num_channels:
        raise ValueError(
            f"the images have {shape[1]} channels, the model reads {num_channels}; convert them (grey to colour: "
            f"pixel_values.expand(-1, {num_channels}, -1, -1))"
        )
    if shape[2:] != image_shape:
        raise ValueError(
            f"the images have {shape[2]} x {shape[3]} pixels, the model reads {image_shape[0]} x {image_shape[1]}; "
            f"resize them, or load the model with image_size={shape[2:]}"
        )
