//! Times of day as texts: in UTC where they are written down, in the zone of this machine where people read them.

use std::time::SystemTime;

use jiff::tz::TimeZone;
use jiff::{Timestamp, ZonedDateTime};

/// The time as a timestamp; one that the calendar does not have becomes 1970.
fn timestamp(time: SystemTime) -> Timestamp {
    Timestamp::try_from(time).unwrap_or(Timestamp::UNIX_EPOCH)
}

/// As RFC 3339 has it, in UTC, to the second: `2026-11-25T01:36:42Z`.
#[must_use]
pub fn rfc3339(time: SystemTime) -> String {
    timestamp(time).strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// As RFC 3339 has it, in UTC, to the millisecond: `2026-11-25T01:36:42.007Z`.
#[must_use]
pub fn moment(time: SystemTime) -> String {
    timestamp(time)
        .strftime("%Y-%m-%dT%H:%M:%S.%3fZ")
        .to_string()
}

/// For names of files, in UTC: `20261125-013642`, and the microseconds of the second.
#[must_use]
pub fn compact(time: SystemTime) -> (String, u32) {
    let timestamp = timestamp(time);
    let microseconds = timestamp.subsec_microsecond().unsigned_abs();
    (
        timestamp.strftime("%Y%m%d-%H%M%S").to_string(),
        microseconds,
    )
}

/// A time as RFC 3339 has it, for people in the zone of this machine: `2026-11-25 02:36:42`, with `offset` also `+01:00`.
/// What is no such time stays as it is: it comes from a file.
#[must_use]
pub fn local(text: &str, offset: bool) -> String {
    local_in(text, offset, TimeZone::system())
}

fn local_in(text: &str, offset: bool, zone: TimeZone) -> String {
    let Ok(timestamp) = text.parse::<Timestamp>() else {
        return text.to_owned();
    };
    let format = match offset {
        true => "%Y-%m-%d %H:%M:%S %:z",
        false => "%Y-%m-%d %H:%M:%S",
    };
    ZonedDateTime::new(timestamp, zone)
        .strftime(format)
        .to_string()
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;

    #[test]
    fn moments_are_those_of_the_calendar() {
        // From `date -u -d @SECONDS`.
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_795_570_602, "2026-11-25T01:36:42Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(rfc3339(UNIX_EPOCH + Duration::from_secs(seconds)), text);
        }
        let (name, microseconds) =
            compact(UNIX_EPOCH + Duration::from_micros(1_795_570_602_000_007));
        let later = UNIX_EPOCH + Duration::from_micros(1_795_570_602_007_999);
        assert_eq!(moment(later), "2026-11-25T01:36:42.007Z");
        assert_eq!(name, "20261125-013642");
        assert_eq!(microseconds, 7);
    }

    #[test]
    fn people_read_the_time_of_their_zone() {
        let zone = TimeZone::fixed(jiff::tz::offset(-3));
        let text = "2026-11-25T01:36:42Z";
        assert_eq!(local_in(text, false, zone.clone()), "2026-11-24 22:36:42");
        assert_eq!(
            local_in(text, true, zone.clone()),
            "2026-11-24 22:36:42 -03:00"
        );
        assert_eq!(local_in("some day", true, zone), "some day");
    }
}
