"""What tests ask models for, as pydantic's models."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

INVENT: list[Any] = [{"role": "user", "content": "Invent a person."}]
ADA = '{"name": "Ada", "age": 36, "mood": "happy"}'


class Person(BaseModel):
    """A person. Bounded, so that a small model comes to an end."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(max_length=20)
    age: int = Field(ge=0, le=150)
    mood: Literal["happy", "sad"]


def is_ada(person: Any) -> bool:
    """Whether it says what `ADA` does."""
    return bool((person.name, person.age, person.mood) == ("Ada", 36, "happy"))
