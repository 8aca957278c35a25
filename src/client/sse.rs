//! outside
//! Reads server-sent events from bytes as they come, in pieces of any size. Bounded: a line longer
//! than a frame can be is an error, not memory.

/// Longest event that is taken, in bytes.
const MOST: usize = 4 << 20;

/// One event. `name` is empty for a mere number or heartbeat.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct SseEvent {
    pub id: Option<String>,
    pub name: String,
    pub data: String,
}

/// An event that is longer than any of ours.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("an event is longer than {MOST} bytes")]
pub struct TooLong;

#[derive(Debug, Default)]
pub struct Reader {
    line: Vec<u8>,
    event: SseEvent,
    after_cr: bool,
}

impl Reader {
    /// Takes bytes and gives the events that are whole by now.
    ///
    /// # Errors
    /// If an event grows beyond the bound.
    pub fn take(&mut self, bytes: &[u8]) -> Result<Vec<SseEvent>, TooLong> {
        let mut events = Vec::new();
        for byte in bytes {
            let skip = self.after_cr && *byte == b'\n';
            self.after_cr = *byte == b'\r';
            if skip {
                continue;
            }
            if *byte == b'\n' || *byte == b'\r' {
                let line = std::mem::take(&mut self.line);
                self.line_ended(&String::from_utf8_lossy(&line), &mut events);
                continue;
            }
            self.line.push(*byte);
            if self.line.len().saturating_add(self.event.data.len()) > MOST {
                return Err(TooLong);
            }
        }
        Ok(events)
    }

    fn line_ended(&mut self, line: &str, events: &mut Vec<SseEvent>) {
        if line.is_empty() {
            let event = std::mem::take(&mut self.event);
            if event != SseEvent::default() {
                events.push(event);
            }
            return;
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "id" => self.event.id = Some(value.to_owned()),
            "event" => value.clone_into(&mut self.event.name),
            "data" => {
                if !self.event.data.is_empty() {
                    self.event.data.push('\n');
                }
                self.event.data.push_str(value);
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_come_whole_from_pieces_of_any_size() {
        let text = ":\n\nid: 7\nevent: access_changed\ndata: {\"a\":1}\n\n: x\nid: 9\n\r\ndata: a\r\ndata:b\r\n\r\n";
        let event = |id: Option<&str>, name: &str, data: &str| SseEvent { id: id.map(str::to_owned), name: name.into(), data: data.into() };
        let expected = [event(Some("7"), "access_changed", "{\"a\":1}"), event(Some("9"), "", ""), event(None, "", "a\nb")];
        for size in [1, 2, 3, 7, 1000] {
            let mut reader = Reader::default();
            let got: Vec<SseEvent> = text.as_bytes().chunks(size).flat_map(|piece| reader.take(piece).unwrap()).collect();
            assert_eq!(got, expected, "{size}");
        }
    }

    #[test]
    fn an_endless_line_is_refused() {
        let mut reader = Reader::default();
        assert!(reader.take(&vec![b'x'; MOST]).is_ok());
        assert_eq!(reader.take(b"x"), Err(TooLong));
    }
}
