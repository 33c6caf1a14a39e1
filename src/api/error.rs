//! The one error of the API and the command line: a stable code, what happened, what to do.
//!
//! Codes and exit codes are a promise to scripts: they are added to, never changed.

use axum::http::StatusCode;
use serde::{Deserialize, Serialize};

/// Why a request was not carried out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    /// What kind of error it is, for programs.
    pub code: ErrorCode,
    /// What was attempted and why it failed, in one sentence without its full stop.
    pub message: String,
    /// What the reader can do about it; empty if nothing is known to help.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub hint: String,
}

impl ApiError {
    /// An error of this kind.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), hint: String::new() }
    }

    /// The same with what to do about it.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = hint.into();
        self
    }

    /// Something that has no better code.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::Internal, message)
    }

    /// There is no such thing.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::NotFound, message)
    }
}

/// The kinds of errors, each with an exit code of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ErrorCode {
    /// The request or the command line has a form that makes no sense.
    Usage,
    /// The cluster works, but something needs a person.
    Degraded,
    /// No agent answers on the socket.
    NoAgent,
    /// The service, volume or node named does not exist.
    NotFound,
    /// A lease or epoch forbids it: another node is or may be master.
    Fenced,
    /// The deadline passed; the operation goes on in the agent.
    TimedOut,
    /// The caller may not do this.
    NotPermitted,
    /// No node fits.
    CannotPlace,
    /// The caller pressed Ctrl-C.
    Interrupted,
    /// The deployment file does not say something that can be deployed.
    BadManifest,
    /// A file named on the command line does not exist.
    FileMissing,
    /// An address or port is already in use.
    AddressInUse,
    /// An agent already runs here.
    AlreadyRunning,
    /// Another operation on the same thing is under way.
    Busy,
    /// Anything else. Also what an older binary makes of a code it does not know.
    #[serde(other)]
    Internal,
}

impl ErrorCode {
    /// All codes, in the order of their exit codes.
    pub const ALL: [Self; 15] = [
        Self::Internal,
        Self::Usage,
        Self::Degraded,
        Self::NoAgent,
        Self::NotFound,
        Self::Fenced,
        Self::TimedOut,
        Self::NotPermitted,
        Self::CannotPlace,
        Self::BadManifest,
        Self::FileMissing,
        Self::AddressInUse,
        Self::AlreadyRunning,
        Self::Busy,
        Self::Interrupted,
    ];

    /// The exit code of a command that ends with this error.
    #[must_use]
    pub const fn exit_code(self) -> u8 {
        match self {
            Self::Internal => 1,
            Self::Usage => 2,
            Self::Degraded => 3,
            Self::NoAgent => 4,
            Self::NotFound => 5,
            Self::Fenced => 6,
            Self::TimedOut => 7,
            Self::NotPermitted => 8,
            Self::CannotPlace => 9,
            Self::BadManifest => 10,
            Self::FileMissing => 11,
            Self::AddressInUse => 12,
            Self::AlreadyRunning => 13,
            Self::Busy => 14,
            Self::Interrupted => 130,
        }
    }

    /// What the exit code means, for help texts.
    #[must_use]
    pub const fn meaning(self) -> &'static str {
        match self {
            Self::Internal => "error",
            Self::Usage => "wrong usage",
            Self::Degraded => "degraded: something needs a person",
            Self::NoAgent => "no agent reached",
            Self::NotFound => "not found",
            Self::Fenced => "refused by fencing",
            Self::TimedOut => "timed out, the operation goes on",
            Self::NotPermitted => "not permitted",
            Self::CannotPlace => "can't be placed on any node",
            Self::BadManifest => "bad deployment file",
            Self::FileMissing => "file missing",
            Self::AddressInUse => "address or port in use",
            Self::AlreadyRunning => "an agent already runs here",
            Self::Busy => "another operation is under way",
            Self::Interrupted => "interrupted",
        }
    }

    /// The HTTP status of an answer with this error.
    #[must_use]
    pub const fn http_status(self) -> StatusCode {
        match self {
            Self::Usage | Self::BadManifest => StatusCode::BAD_REQUEST,
            Self::NotFound | Self::FileMissing => StatusCode::NOT_FOUND,
            Self::NotPermitted => StatusCode::FORBIDDEN,
            Self::Fenced | Self::CannotPlace | Self::Busy | Self::AlreadyRunning => {
                StatusCode::CONFLICT
            }
            Self::NoAgent | Self::Degraded => StatusCode::SERVICE_UNAVAILABLE,
            Self::TimedOut => StatusCode::GATEWAY_TIMEOUT,
            Self::Interrupted | Self::AddressInUse | Self::Internal => {
                StatusCode::INTERNAL_SERVER_ERROR
            }
        }
    }
}

impl super::Schema for ApiError {
    const SCHEMA: &'static str = "flocker.error/1";
}
