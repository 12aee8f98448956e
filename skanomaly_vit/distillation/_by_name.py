"""Students by name, and the constraint of the parameter `student`."""

from __future__ import annotations

from typing import Any

from sklearn.base import clone

from skanomaly_vit._utils.compat import HasMethods, StrOptions, validate_parameter_constraints
from skanomaly_vit.distillation._block_student import BlockStudent
from skanomaly_vit.distillation._own_student import OwnStudent
from skanomaly_vit.distillation._ridge_student import RidgeStudent
from skanomaly_vit.distillation._student import BaseStudent, StorableStudent

STUDENTS: dict[str, type[StorableStudent]] = {"ridge": RidgeStudent, "block": BlockStudent}

#: Constraint of the parameter `student`.
STUDENT_CONSTRAINT: list[Any] = [
    StrOptions(set(STUDENTS)),
    BaseStudent,
    HasMethods(["fit", "predict"]),
]


def make_student(student: Any) -> BaseStudent:
    """Make a student from a name, a student of ours, or any with ``fit`` and ``predict``.

    Raises
    ------
    ValueError
        If `student` is a class, or one of ours with a parameter that is not as described.
    """
    if isinstance(student, type):
        raise ValueError(f"student={student.__name__} is a class; pass an instance of it")
    if isinstance(student, str):
        return STUDENTS[student]()
    if not isinstance(student, BaseStudent):
        return OwnStudent(student)
    validate_parameter_constraints(
        student._parameter_constraints,
        student.get_params(deep=False),
        caller_name=type(student).__name__,
    )
    return clone(student)
