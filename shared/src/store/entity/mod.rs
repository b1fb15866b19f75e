//! The tables, one module each: what the schema's migrations make, as sea-orm reads it.

#![allow(missing_docs, reason = "the derives make public columns and types without docs; the fields have theirs")]

pub mod course;
pub mod course_live_session;
pub mod course_staff;
pub mod dead_letter;
pub mod dead_letter_change;
pub mod dead_letter_failure;
pub mod erased_person;
pub mod erasure_salt;
pub mod live_session_interval;
pub mod live_session_recording;
pub mod live_session_start;
pub mod live_session_user;
pub mod recording_lease;
pub mod worker_pause;
pub mod worker_process;
