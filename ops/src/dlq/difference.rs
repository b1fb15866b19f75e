//! What two bodies differ in, by JSON pointers: `/room/room_id "a" → "b"`.

use rollcall_shared::display::in_line;
use serde_json::Value;

/// Where the two differ, a line each, in the order of the first.
pub(super) fn between(before: &Value, after: &Value) -> Vec<String> {
    let mut lines = Vec::new();
    compare("", Some(before), Some(after), &mut lines);
    lines
}

fn compare(pointer: &str, before: Option<&Value>, after: Option<&Value>, lines: &mut Vec<String>) {
    let name = in_line(pointer);
    match (before, after) {
        (before, after) if before == after => {}
        (Some(Value::Object(before)), Some(Value::Object(after))) => {
            let added = after.keys().filter(|key| !before.contains_key(*key));
            for key in before.keys().chain(added) {
                compare(&child(pointer, key), before.get(key), after.get(key), lines);
            }
        }
        (Some(Value::Array(before)), Some(Value::Array(after))) => {
            for index in 0..before.len().max(after.len()) {
                compare(&child(pointer, &index.to_string()), before.get(index), after.get(index), lines);
            }
        }
        (Some(before), Some(after)) => lines.push(format!("{name} {before} → {after}")),
        (None, Some(after)) => lines.push(format!("{name} added: {after}")),
        (Some(before), None) => lines.push(format!("{name} removed: {before}")),
        (None, None) => {}
    }
}

fn child(pointer: &str, key: &str) -> String {
    format!("{pointer}/{}", key.replace('~', "~0").replace('/', "~1"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn each_difference_is_a_line() {
        let before = json!({"event": "x", "room": {"room_id": "a", "a/b": 1}, "list": [1, {"k": 1}], "gone": null});
        let after = json!({"event": "x", "room": {"room_id": "b", "a/b": 2, "sid": "S"}, "list": [1, {"k": 2}, 3]});
        let lines = between(&before, &after);
        let expected = [
            r#"/room/room_id "a" → "b""#,
            "/room/a~1b 1 → 2",
            r#"/room/sid added: "S""#,
            "/list/1/k 1 → 2",
            "/list/2 added: 3",
            "/gone removed: null",
        ];
        assert_eq!(lines, expected);
        assert_eq!(between(&before, &before), Vec::<String>::new());
        assert_eq!(between(&json!({}), &json!({"a\n/b": "c\nd"})), [r#"/a ~1b added: "c\nd""#], "a line each");
        assert_eq!(between(&json!(1), &json!("1")), [r#" 1 → "1""#]);
    }
}
