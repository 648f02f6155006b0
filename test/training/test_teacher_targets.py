"""Frames of student and teacher in pairs."""

import pytest
import torch

from distill.errors import UserError
from distill.training.teacher_targets import MAX_FRAMES_APART, pair_frames


def test_a_difference_that_rounding_explains_leaves_the_shorter_length():
    pairs = pair_frames(torch.tensor([50, 40]), torch.tensor([50 + MAX_FRAMES_APART, 39]), 0, ["a", "b"])
    assert pairs.lengths.tolist() == [50, 39]


def test_a_larger_difference_names_the_utterance():
    with pytest.raises(UserError, match="teacher targets of b: 43 frames, but the student has 40"):
        pair_frames(torch.tensor([50, 40]), torch.tensor([50, 40 + MAX_FRAMES_APART + 1]), 0, ["a", "b"])


def test_with_a_delay_a_later_frame_of_the_student_is_compared():
    pairs = pair_frames(torch.tensor([50, 2]), torch.tensor([50, 2]), 3, ["a", "b"])
    frames = torch.arange(50)
    assert torch.equal(frames[pairs.student] - frames[pairs.teacher], torch.full((47,), 3))
    assert pairs.lengths.tolist() == [47, 0]
